package optimize

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
)

const wholeJob = `# everything that a job may say
layer: "0-2"
shared: true
chat: true
system: Be brief.
parse_special: false
lr: 0.1
max_iters: 20
target_loss: 3
do_target_loss_sum: false
target_loss_target_iters: 2
satisfice: true
max_norm: 20.5
starting_norm: 2
coldness: 1
eps: 1e-5
normalize_token_length: true
do_one_minus: false
only_hook_prompt: true
vector_clamp: none
affine_rank: 1
starting_affine_norm: 0.5
max_affine_norm: 3
noise_scale: 0.25
noise_iters: 4
do_tangent_space_noise: true
do_noise_abl_relu: true
do_antipgd: false
do_output_constr: true
output_constr_lr: 0.02
max_output_constr_iters: 30
output_constr_objective: melbo
melbo_layer: 5
minibatch_size: 5
do_relative_scale: false
optimizer: adam
regularization_weight: 0.2
regularization_type: max
sparsity_weight: 0
entropy_weight: 10
seed: 7
examples:
  - prompt: "Some of my memories\n\n"
    src_completions: &shared ["<h2>Ingredients</h2>", no]
    dst_completions: ["<h2>Ingredientes</h2>"]
    token: "3:"
    is_negative: true
    src_completions_target_losses: [4, 0.5]
    dst_completions_target_losses: [-1]
  - prompt: |
      two
      lines
    dst_completions: *shared
    token: -1
start:
  shared: {vector: [1, -0.1, 1e-20], left: [[1, 2, 3]], right: [[0, 0.5, -1]]}
`

func wholeJobRead() *Job {
	return &Job{
		Options: Options{
			LR: ptr(0.1), MaxIters: ptr(20), Coldness: 1, Eps: 1e-5, StartingNorm: ptr(2.0), MaxNorm: ptr(20.5), TargetLoss: ptr(3.0),
			TargetLossTargetIters: 2, Satisfice: true, NormalizeTokenLength: true, OnlyHookPrompt: true,
			AffineRank: ptr(1), StartingAffineNorm: ptr(0.5), MaxAffineNorm: 3, NoiseScale: ptr(0.25), NoiseIters: 4,
			DoTangentSpaceNoise: true, DoNoiseAblRelu: true, DoOutputConstr: true, OutputConstrLR: ptr(0.02), MaxOutputConstrIters: ptr(30),
			OutputConstrObjective: "melbo", MelboLayer: ptr(5), MinibatchSize: 5, DoRelativeScale: false, Optimizer: "adam",
			RegularizationWeight: 0.2, RegularizationType: "max", EntropyWeight: 10, Seed: 7,
		},
		Layers: Layers{List: []int{0, 1, 2}}, Shared: true, Chat: true, System: "Be brief.",
		Examples: []Example{
			{
				Prompt: "Some of my memories\n\n", Src: []string{"<h2>Ingredients</h2>", "no"}, Dst: []string{"<h2>Ingredientes</h2>"},
				SrcTargets: []float64{4, 0.5}, DstTargets: []float64{-1}, Token: &Span{Start: ptr(3)}, Negative: true,
			},
			{Prompt: "two\nlines\n", Dst: []string{"<h2>Ingredients</h2>", "no"}, Token: &Span{Index: true, Start: ptr(-1)}},
		},
		Start: map[string]loader.Parameters{"shared": {Vector: []float32{1, -0.1, 1e-20}, Left: [][]float32{{1, 2, 3}}, Right: [][]float32{{0, 0.5, -1}}}},
	}
}

func TestReadJob(t *testing.T) {
	job, err := ReadJob("job.yaml", []byte(wholeJob))
	require.NoError(t, err)
	require.Equal(t, wholeJobRead(), job)
	require.NoError(t, job.Validate())
	for _, o := range OptionTable() {
		require.Contains(t, wholeJob, o.Name+":", "the test says everything")
	}
}

func TestReadJobDefaults(t *testing.T) {
	for _, text := range []string{"{}", "lr: auto\nmax_iters: none\nmax_norm: null\ntarget_loss:\n", `{"lr": null, "starting_norm": "auto"}`} {
		job, err := ReadJob("job.yaml", []byte(text))
		require.NoError(t, err)
		require.Equal(t, &Job{Options: DefaultOptions()}, job)
	}
	job, err := ReadJob("demo", demo.Job)
	require.NoError(t, err)
	require.NoError(t, job.Validate())
	require.Len(t, job.Examples, 5)
	require.Equal(t, []int{2}, job.Layers.List)
}

func TestReadLayers(t *testing.T) {
	for text, expected := range map[string]Layers{
		"10": {List: []int{10}}, "[3, 7]": {List: []int{3, 7}}, "3,7": {List: []int{3, 7}}, `"0-2"`: {List: []int{0, 1, 2}}, "0-2": {List: []int{0, 1, 2}},
		"all": {All: true}, `"10"`: {List: []int{10}},
	} {
		job, err := ReadJob("job.yaml", []byte("layer: "+text))
		require.NoError(t, err, text)
		require.Equal(t, expected, job.Layers, text)
	}
}

// JSON says what it says to every other reader of JSON, whatever its escapes and characters.
func TestReadJSON(t *testing.T) {
	hard := "quote \" back \\ slash / tab \t line\n end\u0085 \u2028 \u2029 del \x7f nul \x00 é 漢 🎈 \\ud83d\\ude00 \\u0041 \ufeff  two  spaces "
	plain, err := json.Marshal(hard)
	require.NoError(t, err)
	ascii := regexp.MustCompile(`[^ -~]`).ReplaceAllStringFunc(string(plain), func(s string) string {
		if r := []rune(s)[0]; r < 0x10000 {
			return fmt.Sprintf(`\u%04X`, r)
		}
		require.Equal(t, "🎈", s)
		return `\uD83C\uDF88`
	})
	raw := strings.NewReplacer(`\u2028`, "\u2028", `\u2029`, "\u2029", "/", `\/`).Replace(string(plain))
	for _, text := range []string{string(plain), ascii, raw} {
		var same string
		require.NoError(t, json.Unmarshal([]byte(text), &same))
		require.Equal(t, hard, same, "the test's own JSON")
		file := "{\n\t\"layer\":[1,2],\"lr\":1E-1,\n\t\"examples\":[{\"prompt\":" + text + ",\"dst_completions\":[" + text + "]}]\n}\n"
		job, err := ReadJob("job.json", []byte(file))
		require.NoError(t, err)
		require.Equal(t, &Job{Options: job.Options, Layers: Layers{List: []int{1, 2}}, Examples: []Example{{Prompt: hard, Dst: []string{hard}}}}, job)
		require.Equal(t, 0.1, *job.LR)
		_, err = ReadJob("job.json", []byte(strings.Replace(file, `"prompt"`, `"promt"`, 1)))
		require.Equal(t, "job.json:3: examples[0].promt: unknown key", inputError(t, err).Message, "lines stay")
	}
}

func TestJobFileErrors(t *testing.T) {
	const example = "examples:\n  - prompt: a\n    dst_completions: [b]\n"
	for _, c := range []struct{ text, message string }{
		// not a job
		{"", ": the job is empty"},
		{"# nothing\n", ": the job is empty"},
		{"null", ":1: expected keys with values, found nothing"},
		{"lr", `:1: expected keys with values, found the text "lr"`},
		{"- lr: 1", ":1: expected keys with values, found a list"},
		{"lr: 1\n---\nlr: 2\n", ":2: expected one job, found a second document"},
		{"lr: 1\nmax_iters: a: b\n", ":2: neither YAML nor JSON: mapping values are not allowed in this context"},
		{"{\"lr\": 1,\n\"examples\": [", ":2: neither YAML nor JSON: "},
		{"GGUF\x03\x00\x00\x00", ": neither YAML nor JSON: control characters are not allowed"},
		{"system: \xff\n", ": neither YAML nor JSON: invalid leading UTF-8 octet"},
		{"{\"system\": \"\xff\"}", ": neither YAML nor JSON: invalid leading UTF-8 octet"},
		{`{"system": "\ud83d"}`, ": neither YAML nor JSON: found invalid Unicode character escape code"},
		{"examples: *nowhere", ": neither YAML nor JSON: unknown anchor 'nowhere' referenced"},
		{"examples: &a [*a]", ":1: examples[0]: expected keys with values, found a list"},
		// keys
		{"lr: 1\nlerning_rate: 2\n", ":2: lerning_rate: unknown key"},
		{"target-loss: 2", ":1: target-loss: unknown key"},
		{"lr: 1\nmax_iters: 3\nlr: 2\n", ":3: lr: this key stands on line 1 already"},
		{"? [lr]\n: 3", ":1: expected a key, found a list"},
		{"<<: {lr: 1}", ":1: <<: unknown key"},
		{"starting_vec: [1]", ":1: starting_vec: unknown key: it is given as start"},
		{"return_vec_history: true", ":1: return_vec_history: unknown key: optimize --trace FILE --trace-tensors"},
		// options
		{"lr: fast", `:1: lr: expected a number above 0, or auto, found the text "fast"`},
		{`lr: "0.1"`, `:1: lr: expected a number above 0, or auto, found the text "0.1"`},
		{"lr: [1]", ":1: lr: expected a number above 0, or auto, found a list"},
		{"lr: {a: 1}", ":1: lr: expected a number above 0, or auto, found a mapping"},
		{"lr: true", ":1: lr: expected a number above 0, or auto, found true"},
		{"\n\nlr: .nan", ":3: lr: expected a number above 0, or auto, found .nan"},
		{"target_loss: -.inf", ":1: target_loss: expected a number, or none, found -.inf"},
		{"target_loss: 1e999", ":1: target_loss: expected a number, or none, found the text \"1e999\""},
		{"coldness: 0", ":1: coldness: expected a number above 0, found 0"},
		{"coldness:", ":1: coldness: expected a number above 0, found nothing"},
		{"eps: -1", ":1: eps: expected a number from 0 on, found -1"},
		{"max_norm: 0", ":1: max_norm: expected a number above 0, or none, found 0"},
		{"max_iters: 1.5", ":1: max_iters: expected a whole number from 0 on, or none, found 1.5"},
		{"max_iters: -1", ":1: max_iters: expected a whole number from 0 on, or none, found -1"},
		{"satisfice: 1", ":1: satisfice: expected true or false, found 1"},
		{"satisfice: yes", `:1: satisfice: expected true or false, found the text "yes"`},
		{"regularization_type: l2", `:1: regularization_type: expected l1 or max, found the text "l2"`},
		{"regularization_type: 1", ":1: regularization_type: expected l1 or max, found 1"},
		{"seed: -1", ":1: seed: expected a whole number from 0 on, found -1"},
		{"shared: 1", ":1: shared: expected true or false, found 1"},
		{"system: 5", ":1: system: expected text (in quotes, if it looks like something else), found 5"},
		// layers
		{"layer: -1", ":1: layer: expected a layer's number from 0 on, found -1"},
		{"layer: [3, 99999]", ":1: layer[1]: expected a layer's number from 0 on, found 99999"},
		{"layer: [3, x]", `:1: layer[1]: expected a layer's number, found the text "x"`},
		{"layer: [3, 3]", ":1: layer: 3 is named twice"},
		{"layer: []", ":1: layer: no layer is given"},
		{"layer: two", `:1: layer: expected a layer's number from 0 on, a list such as 3,7, a range such as 0-25, or all, found "two"`},
		{"layer: 1.5", ":1: layer: expected a layer's number from 0 on, a list such as 3,7, a range such as 0-25, or all, found 1.5"},
		{"layer:", ":1: layer: expected a layer's number from 0 on, a list such as 3,7, a range such as 0-25, or all, found nothing"},
		// examples
		{"examples: a", `:1: examples: expected a list, found the text "a"`},
		{"examples:\n  - a", `:2: examples[0]: expected keys with values, found the text "a"`},
		{example + "  - prompt: a\n", ":4: examples[1]: expected src_completions, dst_completions or both, found neither"},
		{example + "  - prompt: a\n    src_completions: []\n", ":4: examples[1]: expected src_completions, dst_completions or both, found neither"},
		{example + "  - dst_completions: [a]\n", ":4: examples[1]: expected a prompt, found none"},
		{example + "    dst_completion: [b]\n", ":4: examples[0].dst_completion: unknown key"},
		{example + "    src_completions: b\n", `:4: examples[0].src_completions: expected a list, found the text "b"`},
		{example + "    src_completions:\n      - b\n      - 2001-01-01\n", ":6: examples[0].src_completions[1]: expected text (in quotes, if it looks like something else), found 2001-01-01"},
		{example + "    src_completions:\n      - b\n      -\n", ":6: examples[0].src_completions[1]: expected text (in quotes, if it looks like something else), found nothing"},
		{example + "    token: a\n", `:4: examples[0].token: expected an index such as -1, or a slice as Python writes it, such as "3:", ":-2" or "1:9:2", found "a"`},
		{example + "    token: [1, 2]\n", ":4: examples[0].token: expected an index such as -1"},
		{example + "    token: 1.5\n", ":4: examples[0].token: expected an index such as -1"},
		{example + "    token: ::0\n", ":4: examples[0].token: expected an index such as -1"},
		{example + "    is_negative: maybe\n", `:4: examples[0].is_negative: expected true or false, found the text "maybe"`},
		{example + "    dst_completions_target_losses: [1, 2]\n", ":4: examples[0].dst_completions_target_losses: expected a target loss for each of the 1 dst_completions, found 2"},
		{example + "    src_completions_target_losses: [1]\n", ":4: examples[0].src_completions_target_losses: expected a target loss for each of the 0 src_completions, found 1"},
		{example + "    dst_completions_target_losses:\n      - .inf\n", ":5: examples[0].dst_completions_target_losses[0]: expected a finite number, found .inf"},
		{example + "    dst_completions_target_losses: [low]\n", `:4: examples[0].dst_completions_target_losses[0]: expected a finite number, found the text "low"`},
		// start
		{"start: [1]", ":1: start: expected keys with values, found a list"},
		{"start: {one: {vector: [1]}}", `:1: start: expected a layer's number, or "shared", found the text "one"`},
		{"start: {-1: {vector: [1]}}", `:1: start: expected a layer's number, or "shared", found -1`},
		{"start: {01: {vector: [1]}}", `:1: start: expected a layer's number, or "shared", found 01`},
		{"start:\n  1: {vector: [1]}\n  1: {vector: [2]}", ":3: start.1: this key stands on line 2 already"},
		{"start: {1: {}}", ":1: start.1: expected a vector, found none"},
		{"start: {1: [1]}", ":1: start.1: expected keys with values, found a list"},
		{"start: {1: {vector: 1}}", ":1: start.1.vector: expected a list, found 1"},
		{"start:\n  1:\n    vector: [1,\n      .nan]", ":4: start.1.vector[1]: expected a finite number that float32 holds, found .nan"},
		{"start: {1: {vector: [1e39]}}", ":1: start.1.vector[0]: expected a finite number that float32 holds, found 1e39"},
		{"start: {1: {vector: [1], left: [1]}}", ":1: start.1.left[0]: expected a list, found 1"},
		{"start: {1: {vector: [1], right: [[.inf]]}}", ":1: start.1.right[0][0]: expected a finite number that float32 holds, found .inf"},
	} {
		_, err := ReadJob("job.yaml", []byte(c.text))
		require.Error(t, err, c.text)
		message := inputError(t, err).Message
		require.True(t, strings.HasPrefix(message, "job.yaml"+c.message), "%s\nexpected: %s\nfound:    %s", c.text, c.message, strings.TrimPrefix(message, "job.yaml"))
	}
	_, err := ReadJob("job.yaml", []byte("examples:\n  - prompt: a\n    colour: red\n"))
	require.Equal(t, "expected one of dst_completions, dst_completions_target_losses, is_negative, prompt, src_completions, src_completions_target_losses, token", inputError(t, err).Hint)
}

// A small file whose aliases multiply does not fill the memory.
func TestAliasesThatMultiply(t *testing.T) {
	text := "examples:\n  - {prompt: a, dst_completions: &many [" + strings.Repeat("b, ", 5000) + "]}\n" +
		strings.Repeat("  - {prompt: a, dst_completions: *many}\n", 1000)
	_, err := ReadJob("job.yaml", []byte(text))
	require.Contains(t, inputError(t, err).Message, "the job has more than 4194304 values")
}

func FuzzReadJob(f *testing.F) {
	f.Add([]byte(wholeJob))
	f.Add([]byte(`{"layer": [1], "start": {"1": {"vector": [1e-3]}}, "examples": [{"prompt": "a", "token": "::2", "src_completions": ["\ud83d\ude00"]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		job, err := ReadJob("job", data)
		if err != nil {
			inputError(t, err)
			return
		}
		// what was read is written and read again without change
		recipe, err := job.recipe()
		require.NoError(t, err)
		if job.Layers.List == nil && !job.Layers.All {
			return // a recipe has its layers
		}
		again, err := ReadJob("recipe", []byte(recipe))
		require.NoError(t, err)
		written, err := again.recipe()
		require.NoError(t, err)
		require.Equal(t, recipe, written)
	})
}

// docs/job-file.md lists the options as they are, and its example is a job.
func TestJobFileDocumentation(t *testing.T) {
	data, err := os.ReadFile("../docs/job-file.md")
	require.NoError(t, err)
	var table strings.Builder
	for _, o := range OptionTable() {
		symbol := o.Symbol
		if symbol == "" {
			symbol = "–"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s | %s |\n", o.Name, symbol, o.expects(), o.Default, strings.ReplaceAll(o.Help, "|", `\|`))
	}
	require.Contains(t, string(data), table.String(), "the table should be\n%s", table.String())

	examples := regexp.MustCompile("(?s)```(?:yaml|json)\n(.*?)```").FindAllStringSubmatch(string(data), -1)
	require.Len(t, examples, 2)
	for _, e := range examples {
		job, err := ReadJob("docs", []byte(e[1]))
		require.NoError(t, err)
		require.NoError(t, job.Validate())
	}
}
