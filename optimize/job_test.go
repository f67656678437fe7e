package optimize

import (
	"context"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/stretchr/testify/require"
)

func TestEveryOptionIsInTheTable(t *testing.T) {
	var options Options
	fields := reflect.TypeFor[Options]()
	for i := range fields.NumField() {
		address := reflect.ValueOf(&options).Elem().Field(i).Addr().Pointer()
		found := 0
		for _, o := range OptionTable() {
			if reflect.ValueOf(o.field(&options)).Pointer() == address {
				found++
			}
		}
		require.Equal(t, 1, found, fields.Field(i).Name)
	}
	require.Len(t, OptionTable(), fields.NumField())
}

func TestOptionDefaults(t *testing.T) {
	expected := map[string]string{
		"lr": "auto", "max_iters": "none", "coldness": "0.7", "eps": "1e-06", "starting_norm": "auto", "max_norm": "none",
		"target_loss": "none", "do_target_loss_sum": "true", "target_loss_target_iters": "1", "satisfice": "false",
		"normalize_token_length": "false", "do_one_minus": "true", "only_hook_prompt": "false", "regularization_weight": "0.01",
		"vector_clamp": "none", "affine_rank": "none", "starting_affine_norm": "auto", "max_affine_norm": "2",
		"noise_scale": "none", "noise_iters": "1", "do_tangent_space_noise": "true", "do_noise_abl_relu": "false", "do_antipgd": "false",
		"do_output_constr": "false", "output_constr_lr": "auto", "max_output_constr_iters": "none", "output_constr_objective": "norm",
		"melbo_layer": "none", "minibatch_size": "5", "do_relative_scale": "false", "optimizer": "adam",
		"regularization_type": "l1", "sparsity_weight": "0.1", "entropy_weight": "0.01", "seed": "0",
	}
	for _, o := range OptionTable() {
		require.Equal(t, expected[o.Name], o.Default, o.Name)
		options := DefaultOptions()
		require.NoError(t, o.Set(&options, o.Default))
		require.Equal(t, DefaultOptions(), options, o.Name)
	}
}

func TestSetOption(t *testing.T) {
	for _, c := range []struct {
		name, value, err string
		expected         any
	}{
		{"lr", "0.1", "", 0.1},
		{"lr", "1e-300", "", 1e-300},
		{"lr", "auto", "", nil},
		{"lr", "none", "expected a number above 0, or auto", nil},
		{"lr", "0", "expected a number above 0, or auto", nil},
		{"lr", "NaN", "expected a number above 0, or auto", nil},
		{"lr", "Inf", "expected a number above 0, or auto", nil},
		{"lr", "1e999", "expected a number above 0, or auto", nil},
		{"target_loss", "-3.5", "", -3.5},
		{"target_loss", "", "expected a number, or none", nil},
		{"target_loss", "-inf", "expected a number, or none", nil},
		{"eps", "0", "", 0.0},
		{"eps", "-1e-9", "expected a number from 0 on", 1e-6},
		{"coldness", "0", "expected a number above 0", 0.7},
		{"coldness", "none", "expected a number above 0", 0.7},
		{"max_norm", "0", "expected a number above 0, or none", nil},
		{"starting_norm", "0", "", 0.0},
		{"max_iters", "0", "", 0},
		{"max_iters", "none", "", nil},
		{"max_iters", "-1", "expected a whole number from 0 on, or none", nil},
		{"max_iters", "2.0", "expected a whole number from 0 on, or none", nil},
		{"target_loss_target_iters", "0", "expected a whole number from 1 on", 1},
		{"regularization_type", "max", "", "max"},
		{"regularization_type", "l2", "expected l1 or max", "l1"},
		{"satisfice", "true", "", true},
		{"satisfice", "yes", "expected true or false", false},
		{"seed", "18446744073709551615", "", uint64(math.MaxUint64)},
		{"seed", "-1", "expected a whole number from 0 on", uint64(0)},
	} {
		t.Run(c.name+" "+c.value, func(t *testing.T) {
			options, o := DefaultOptions(), optionNamed(c.name)
			err := o.Set(&options, c.value)
			if c.err == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, c.err)
			}
			require.Equal(t, c.expected, o.value(&options))
		})
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		change  func(*Job)
		message string // "" if the job is good
	}{
		{func(*Job) {}, ""},
		{func(j *Job) { j.LR = ptr(0.0) }, "lr: expected a number above 0, or auto, found 0"},
		{func(j *Job) { j.LR = ptr(math.NaN()) }, "lr: expected a number above 0, or auto, found NaN"},
		{func(j *Job) { j.MaxIters = ptr(-1) }, "max_iters: expected a whole number from 0 on, or none, found -1"},
		{func(j *Job) { j.Coldness = 0 }, "coldness: expected a number above 0, found 0"},
		{func(j *Job) { j.MaxNorm = ptr(-2.0) }, "max_norm: expected a number above 0, or none, found -2"},
		{func(j *Job) { j.TargetLoss = ptr(math.Inf(1)) }, "target_loss: expected a number, or none, found +Inf"},
		{func(j *Job) { j.RegularizationType = "" }, "regularization_type: expected l1 or max, found "},
		{func(j *Job) { j.Layers = Layers{} }, "layer: no layer is given"},
		{func(j *Job) { j.Layers.List = []int{3, -1} }, "layer: -1 is not a layer: they are counted from 0"},
		{func(j *Job) { j.Layers.List = []int{3, 7, 3} }, "layer: 3 is named twice"},
		{func(j *Job) { j.System = "Be brief." }, "system: a system text is for chat, which is off"},
		{func(j *Job) { j.System, j.Chat = "Be brief.", true }, ""},
		{func(j *Job) { j.ParseSpecial, j.Chat = true, true }, "parse_special: a chat's texts are plain"},
		{func(j *Job) { j.Context = -1 }, "context: expected a number of tokens, found -1"},
		{func(j *Job) { j.Examples = nil }, "examples: the job has none"},
		{func(j *Job) { j.Examples[1] = Example{Prompt: "a"} }, "examples[1]: expected src_completions, dst_completions or both, found neither"},
		{func(j *Job) { j.Examples[1].DstTargets = []float64{1} }, "examples[1].dst_completions_target_losses: expected a target loss for each of the 2 dst_completions, found 1"},
		{func(j *Job) { j.Examples[0].SrcTargets = []float64{} }, "examples[0].src_completions_target_losses: expected a target loss for each of the 1 src_completions, found 0"},
		{func(j *Job) { j.Examples[0].SrcTargets = []float64{math.NaN()} }, "examples[0].src_completions_target_losses: expected finite numbers, found NaN"},
		{func(j *Job) { j.Examples[0].Token = &Span{Index: true} }, "examples[0].token: expected an index such as -1, or a slice"},
		{func(j *Job) { j.Examples[0].Token = &Span{Step: ptr(0)} }, "examples[0].token: expected an index such as -1, or a slice"},
		{func(j *Job) { j.Satisfice = true }, "satisfice: there is no target: give target_loss, or target losses of the completions"},
		{func(j *Job) { j.Satisfice, j.TargetLoss = true, ptr(1.0) }, ""},
		{func(j *Job) { j.Satisfice, j.Examples[0].SrcTargets = true, []float64{1} }, "examples[1].dst_completions: satisfice needs a target for every completion"},
		{func(j *Job) { j.Satisfice, j.Examples[1].DstTargets = true, []float64{1, 2} }, "examples[0].src_completions: satisfice needs a target for every completion"},
		{func(j *Job) {
			j.Satisfice, j.Examples[0].SrcTargets, j.Examples[1].DstTargets = true, []float64{1}, []float64{1, 2}
		}, ""},
	} {
		job := &Job{Options: DefaultOptions(), Layers: Layers{List: []int{0}}, Examples: []Example{{Prompt: "a", Src: []string{"b"}}, {Prompt: "a", Dst: []string{"b", "c"}}}}
		c.change(job)
		err := job.Validate()
		if c.message == "" {
			require.NoError(t, err)
			continue
		}
		message := inputError(t, err).Message
		require.True(t, strings.HasPrefix(message, c.message), message)
		_, err = run(context.Background(), newFake(), job, nil)
		require.Equal(t, message, inputError(t, err).Message, "a run begins with it")
	}
}

// Options that contradict each other, or that do nothing without another, are refused before a
// model is looked at, with a sentence that says why. Each is good without the last change.
func TestCombinationsThatMakeNoSense(t *testing.T) {
	type change = func(*Job)
	for _, c := range []struct {
		good, bad change
		message   string
	}{
		{func(j *Job) { j.VectorClamp = ptr(1.0) }, func(j *Job) { j.AffineRank = ptr(2) },
			"vector_clamp: clamp steering has no matrix of its own, and affine_rank asks for one: give one of the two"},
		{nil, func(j *Job) { j.MaxAffineNorm = 3 }, "max_affine_norm: it is for affine steering: give affine_rank, too"},
		{nil, func(j *Job) { j.StartingAffineNorm = ptr(0.5) }, "starting_affine_norm: it is for affine steering: give affine_rank, too"},
		{func(j *Job) { j.AffineRank = ptr(2) }, func(j *Job) { j.DoRelativeScale = true },
			"do_relative_scale: it measures vectors by the stream that they are added to, and affine_rank's matrix, which has the same lr, grows with the stream by itself: leave one of the two out"},
		{func(j *Job) { j.VectorClamp = ptr(1.0) }, func(j *Job) { j.StartingNorm = ptr(0.0) },
			"starting_norm: clamp steering takes the stream's part along v, and v = 0 has no direction: give a norm above 0"},
		{func(j *Job) { j.VectorClamp = ptr(0.0) }, func(j *Job) { j.StartingNorm = ptr(0.0) },
			"starting_norm: ablate steering takes the stream's part along v, and v = 0 has no direction: give a norm above 0"},
		{nil, func(j *Job) { j.NoiseIters = 4 }, "noise_iters: it is for noise: give noise_scale, too"},
		{nil, func(j *Job) { j.DoTangentSpaceNoise = false }, "do_tangent_space_noise: it is for noise: give noise_scale, too"},
		{nil, func(j *Job) { j.DoNoiseAblRelu = true }, "do_noise_abl_relu: it is for noise: give noise_scale, too"},
		{nil, func(j *Job) { j.DoAntipgd = true }, "do_antipgd: it is for noise: give noise_scale, too"},
		{func(j *Job) { j.VectorClamp = ptr(1.0) }, func(j *Job) { j.NoiseScale = ptr(0.1) },
			"do_tangent_space_noise: the tangent is the gradient at v = 0, and clamp steering has none there"},
		{func(j *Job) { j.NoiseScale, j.DoNoiseAblRelu = ptr(0.1), true }, func(j *Job) { j.DoAntipgd = true },
			"do_noise_abl_relu: it is for tangent-space noise, which is off here"},
		{nil, func(j *Job) { j.OutputConstrLR = ptr(0.1) }, "output_constr_lr: it is for the output-constrained stage: give do_output_constr, too"},
		{nil, func(j *Job) { j.MaxOutputConstrIters = ptr(9) }, "max_output_constr_iters: it is for the output-constrained stage: give do_output_constr, too"},
		{nil, func(j *Job) { j.OutputConstrObjective, j.MelboLayer = "melbo", ptr(2) },
			"output_constr_objective: it is for the output-constrained stage: give do_output_constr, too"},
		{func(j *Job) { j.DoOutputConstr = true }, func(j *Job) { j.OutputConstrObjective = "melbo" },
			"melbo_layer: output_constr_objective melbo needs the layer that it looks at"},
		{func(j *Job) { j.DoOutputConstr = true }, func(j *Job) { j.MelboLayer = ptr(2) }, "melbo_layer: it is for output_constr_objective melbo"},
		{func(j *Job) { j.NoiseScale = ptr(0.1) }, func(j *Job) { j.Optimizer = "bundle" },
			"optimizer: bundle compares the losses of one step with those of the next, and noise changes them: adam does not mind"},
		{func(j *Job) { j.Examples, j.Prompts, j.Dst = nil, []string{"a", "b"}, []string{"c"} }, func(j *Job) { j.Optimizer = "bundle" },
			"optimizer: bundle compares the losses of one step with those of the next, and those of a minibatch are of other prompts: adam does not mind"},
		{func(j *Job) { j.Satisfice, j.TargetLoss = true, ptr(1.0) }, func(j *Job) { j.Optimizer = "bundle" },
			"optimizer: bundle takes the steps that lower the loss, and satisfice has to raise it where it is below its target: adam does not mind"},
		{nil, func(j *Job) { j.MinibatchSize = 3 }, "minibatch_size: a minibatch is made of prompts, and this job has examples"},
		{nil, func(j *Job) { j.Prompts, j.Dst = []string{"a"}, []string{"c"} }, "prompts: a job has prompts or examples, not both"},
		{nil, func(j *Job) { j.Dst = []string{"c"} }, "dst_completions: beside examples they have none to follow: give prompts, or write them into an example"},
		{nil, func(j *Job) { j.Src = []string{"c"} }, "src_completions: beside examples they have none to follow: give prompts, or write them into an example"},
		{nil, func(j *Job) { j.Examples, j.Prompts = nil, []string{"a"} }, "prompts: expected src_completions, dst_completions or both beside them, found neither"},
		{nil, func(j *Job) { j.DoTargetLossSum = false },
			"do_target_loss_sum: each completion is compared with its target, and there is none: give target_loss, or target losses of the completions"},
		{nil, func(j *Job) { j.Satisfice = true }, "satisfice: there is no target: give target_loss, or target losses of the completions"},
		{nil, func(j *Job) { j.Examples[0].Dst = []string{"c", "b"} },
			`examples[0]: the completion "b" cannot become likely and unlikely: it is in src_completions and in dst_completions`},
		{nil, func(j *Job) { j.System = "Be brief." }, "system: a system text is for chat, which is off"},
	} {
		t.Run(c.message, func(t *testing.T) {
			job := &Job{Options: DefaultOptions(), Layers: Layers{List: []int{0}}, Examples: []Example{{Prompt: "a", Src: []string{"b"}}}}
			if c.good != nil {
				c.good(job)
			}
			require.NoError(t, job.Validate())
			c.bad(job)
			require.Equal(t, c.message, inputError(t, job.Validate()).Message)
		})
	}
}

// What only the model's tokens show.
func TestCompletions(t *testing.T) {
	for _, c := range []struct {
		name    string
		example Example
		change  func(*Job, *fakeModel)
		message string // "" if it is good
		prompt  int    // its tokens
		tokens  []int32
	}{
		{"together with the prompt", Example{Prompt: "ad", Dst: []string{"da"}}, nil, "", 3, nil},
		{"merged into the prompt", Example{Prompt: "ad", Src: []string{"b"}, Dst: []string{"a", "d"}}, nil, `examples[0].dst_completions[1] ("d"): it is left without tokens`, 0, nil},
		{"empty", Example{Prompt: "a", Dst: []string{""}}, nil, `examples[0].dst_completions[0] (""): it is left without tokens`, 0, nil},
		{"an empty prompt behind BOS", Example{Dst: []string{"b"}}, nil, "", 1, []int32{0, 2}},
		{"an empty prompt", Example{Src: []string{"b"}}, func(_ *Job, m *fakeModel) { m.noBOS = true }, "examples[0].prompt: it has no tokens", 0, nil},
		{"a prompt without BOS", Example{Prompt: "a", Src: []string{"b"}}, func(_ *Job, m *fakeModel) { m.noBOS = true }, "", 1, []int32{1, 2}},
		{"control tokens are plain text", Example{Prompt: "<a>", Src: []string{"<a>b"}}, nil, "", 4, []int32{0, 2, 1, 3, 2, 1, 3, 2}},
		{"control tokens are asked for", Example{Prompt: "<a>", Src: []string{"<a>b"}}, func(j *Job, _ *fakeModel) { j.ParseSpecial = true }, "", 2, []int32{0, 1, 1, 2}},
		{"chat", Example{Prompt: "c", Src: []string{"a"}}, func(j *Job, _ *fakeModel) { j.Chat, j.System = true, "d" }, "", 6, []int32{0, 1, 4, 2, 3, 3, 1}},
		{"as long as the context", Example{Prompt: "abca", Dst: []string{"bc"}}, func(_ *Job, m *fakeModel) { m.context = 7 }, "", 5, nil},
		{"longer than the context", Example{Prompt: "abca", Dst: []string{"b", "bca" + strings.Repeat("b", 60)}}, func(_ *Job, m *fakeModel) { m.context = 7 },
			`examples[0].dst_completions[1] ("bcabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb…"): prompt and completion have 68 tokens, and the model's training context is 7`, 0, nil},
		{"longer than was asked for", Example{Prompt: "abca", Dst: []string{"b"}}, func(j *Job, _ *fakeModel) { j.Context = 5 }, "prompt and completion have 6 tokens, and the context is 5", 0, nil},
		{"an index out of range", Example{Prompt: "a", Dst: []string{"b"}, Token: span(t, "3")}, nil,
			`examples[0].token: index 3 is out of range: prompt and completion have 3 tokens (examples[0].dst_completions[0] ("b"))`, 0, nil},
		{"a negative index out of range", Example{Prompt: "a", Dst: []string{"b"}, Token: span(t, "-4")}, nil, "examples[0].token: index -4 is out of range", 0, nil},
		{"a slice out of range", Example{Prompt: "a", Dst: []string{"b"}, Token: span(t, "7:")}, nil, "", 2, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := &Job{Options: DefaultOptions(), Layers: Layers{List: []int{0}}, Examples: []Example{c.example}}
			job.LR, job.MaxIters = ptr(0.1), ptr(1)
			m := newFake()
			if c.change != nil {
				c.change(job, m)
			}
			_, err := run(context.Background(), m, job, nil)
			if c.message != "" {
				require.Contains(t, inputError(t, err).Message, c.message)
				require.Nil(t, m.session)
				return
			}
			require.NoError(t, err)
			s := m.session.sequences[0]
			require.Equal(t, c.prompt, s.Prompt)
			if c.tokens != nil {
				require.Equal(t, c.tokens, s.Tokens)
			}
		})
	}
}

func TestStrengths(t *testing.T) {
	for _, c := range []struct {
		name     string
		example  Example
		prompt   bool
		expected []float32
	}{
		{"all", Example{}, false, []float32{1, 1, 1, 1, 1}},
		{"negative", Example{Negative: true}, false, []float32{-1, -1, -1, -1, -1}},
		{"prompt only", Example{}, true, []float32{1, 1, 1, 0, 0}},
		{"prompt only replaces token", Example{Token: span(t, "9")}, true, []float32{1, 1, 1, 0, 0}},
		{"negative prompt", Example{Negative: true}, true, []float32{-1, -1, -1, 0, 0}},
		{"index", Example{Token: span(t, "1")}, false, []float32{0, 1, 0, 0, 0}},
		{"index from the end, over prompt and completion", Example{Token: span(t, "-1")}, false, []float32{0, 0, 0, 0, 1}},
		{"slice", Example{Token: span(t, "3:")}, false, []float32{0, 0, 0, 1, 1}},
		{"slice from the end", Example{Token: span(t, "-4:-1")}, false, []float32{0, 1, 1, 1, 0}},
		{"backwards", Example{Token: span(t, "::-2"), Negative: true}, false, []float32{-1, 0, -1, 0, -1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := &Job{Options: DefaultOptions(), Examples: []Example{c.example}}
			job.OnlyHookPrompt = c.prompt
			job.Examples[0].Prompt, job.Examples[0].Dst = "ab", []string{"cd"}
			completions, err := job.completions(newFake())
			require.NoError(t, err)
			require.Equal(t, [][]float32{c.expected}, job.sequences(completions, false)[0].Vector)
		})
	}
}

// Slices select what Python's do.
func TestSlices(t *testing.T) {
	n := reference.Slices.Length
	require.NotEmpty(t, reference.Slices.Selected)
	for text, selected := range reference.Slices.Selected {
		s := span(t, text)
		mask, err := s.mask(n)
		require.NoError(t, err)
		expected := make([]bool, n)
		for _, i := range selected {
			expected[i] = true
		}
		require.Equal(t, expected, mask, text)
		again, err := ParseSpan(s.String())
		require.NoError(t, err)
		require.Equal(t, s, again)
	}
	for _, extreme := range []string{"0:9223372036854775807:9223372036854775807", "-9223372036854775808::9223372036854775807", "::-9223372036854775808"} {
		mask, err := span(t, extreme).mask(3)
		require.NoError(t, err)
		require.Contains(t, [][]bool{{true, false, false}, {false, false, true}}, mask, extreme)
	}
}

func TestParseSpan(t *testing.T) {
	require.Equal(t, &Span{Index: true, Start: ptr(-1)}, span(t, "-1"))
	require.Equal(t, &Span{Start: ptr(3)}, span(t, " 3 : "))
	require.Equal(t, &Span{Stop: ptr(2), Step: ptr(-1)}, span(t, ":2:-1"))
	for _, wrong := range []string{"", "a", "1.5", "1:2:3:4", "::0", "1:b", "[1:2]", "99999999999999999999"} {
		_, err := ParseSpan(wrong)
		message := inputError(t, err).Message
		require.Contains(t, message, "expected an index")
		require.Contains(t, message, `found "`+wrong+`"`)
	}
}

func TestParseLayers(t *testing.T) {
	for text, expected := range map[string]Layers{
		"10": {List: []int{10}}, "3,7": {List: []int{3, 7}}, " 3, 7 ": {List: []int{3, 7}}, "0-3": {List: []int{0, 1, 2, 3}},
		"5-5": {List: []int{5}}, "0-1,4": {List: []int{0, 1, 4}}, "all": {All: true},
	} {
		layers, err := ParseLayers(text)
		require.NoError(t, err, text)
		require.Equal(t, expected, layers)
		again, err := ParseLayers(layers.String())
		require.NoError(t, err)
		require.Equal(t, expected, again)
	}
	for _, wrong := range []string{"", "two", "-1", "1,", "5-2", "1-2-3", "1.5", "0-9999999999", "10000", "0x1", "all,1"} {
		_, err := ParseLayers(wrong)
		require.Contains(t, inputError(t, err).Message, "found \""+wrong+`"`)
	}
}

func TestResolveLayers(t *testing.T) {
	for _, c := range []struct {
		layers   Layers
		expected []int
		message  string
	}{
		{Layers{All: true}, []int{0, 1, 2, 3}, ""},
		{Layers{List: []int{3, 0}}, []int{0, 3}, ""},
		{Layers{List: []int{1, 4}}, nil, "layer: there is no layer 4: this model has layers 0 to 3"},
		{Layers{List: []int{-1}}, nil, "layer: -1 is not a layer: they are counted from 0"},
		{Layers{List: []int{2, 1, 2}}, nil, "layer: 2 is named twice"},
		{Layers{}, nil, "layer: no layer is given"},
	} {
		layers, err := c.layers.Resolve(4)
		require.Equal(t, c.expected, layers)
		if c.message != "" {
			require.Equal(t, c.message, inputError(t, err).Message)
		} else {
			require.NoError(t, err)
		}
	}
}

// An error of the engine ends a run as it is.
func TestEngineErrors(t *testing.T) {
	broken := errors.New("out of memory")
	job, m := scripted(9, 8)
	m.backwardHook = func(int, [][]float64, []ggmlsteer.Operation) error { return broken }
	_, err := run(context.Background(), m, job, nil)
	require.Equal(t, broken, err)
	require.True(t, m.session.closed)
}
