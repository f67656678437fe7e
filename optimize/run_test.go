package optimize

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

func inputError(t *testing.T, err error) *loader.InputError {
	t.Helper()
	var input *loader.InputError
	require.ErrorAs(t, err, &input)
	return input
}

func stepAdam(a *adam, params, gradient []loader.Parameters) {
	a.accepts(params, gradient, 0)
	a.step(params)
}

// With β 0 and ε 0 every step is lr times the gradient's sign.
func TestAdamTakesWholeSteps(t *testing.T) {
	a := &adam{lr: []float64{1, 2}}
	params := []loader.Parameters{{Vector: []float32{5, -3}}, {Vector: []float32{0, 1}, Left: [][]float32{{7}}, Right: [][]float32{{-7}}}}
	for _, signs := range [][]float32{{1, -1}, {1, -1}, {-1, 1}} {
		stepAdam(a, params, []loader.Parameters{
			{Vector: []float32{1e-3 * signs[0], 40 * signs[1]}},
			{Vector: []float32{2 * signs[0], 2 * signs[1]}, Left: [][]float32{{signs[0]}}, Right: [][]float32{{signs[1]}}},
		})
	}
	require.Equal(t, []loader.Parameters{
		{Vector: []float32{4, -2}}, {Vector: []float32{-2, 3}, Left: [][]float32{{5}}, Right: [][]float32{{-5}}},
	}, params)
}

// The first moments after two steps, by hand: bias correction makes the first step lr.
func TestAdamByHand(t *testing.T) {
	a := &adam{lr: []float64{0.5}, beta1: 0.5, beta2: 0.75}
	params := []loader.Parameters{{Vector: []float32{0}}}
	stepAdam(a, params, []loader.Parameters{{Vector: []float32{4}}})
	require.Equal(t, float32(-0.5), params[0].Vector[0])
	// m = 0.5·2 − 0.5·4 = −1, over 1 − 0.5²; v = 0.75·4 + 0.25·16 = 7, over 1 − 0.75² = 7/16
	stepAdam(a, params, []loader.Parameters{{Vector: []float32{-4}}})
	near(t, -0.5+0.5*(1/0.75)/4, float64(params[0].Vector[0]), 1e-7, "second step")
}

// ε is 1e-8, beside the root: a gradient of that size makes half a step.
func TestAdamEpsilon(t *testing.T) {
	params := []loader.Parameters{{Vector: []float32{0}}}
	stepAdam(newAdam([]float64{2}), params, []loader.Parameters{{Vector: []float32{1e-8}}})
	near(t, -1, float64(params[0].Vector[0]), 1e-6, "a step of lr 2")
}

// Ten steps of Adam agree with those of testdata/reference.py, with the norm
// limit in one of them.
func TestTenSteps(t *testing.T) {
	// the vector is rounded to float32 ten times (1e-7 each, below 2), and so is the
	// gradient, whose error moves a step by at most as much: lr is below 1
	const tolerance = 1e-5
	require.NotEmpty(t, reference.Descents)
	for _, d := range reference.Descents {
		t.Run(d.Case, func(t *testing.T) {
			i := slices.IndexFunc(reference.Cases, func(c referenceCase) bool { return c.Name == d.Case })
			job := reference.Cases[i].job(t)
			job.LR, job.MaxNorm, job.MaxIters = &d.LR, &d.MaxNorm, ptr(10)
			var steps []Step
			result, err := run(context.Background(), newFake(), job, func(s Step) { steps = append(steps, s) })
			require.NoError(t, err)
			require.Len(t, steps, 11)
			for n, s := range steps {
				require.Equal(t, n, s.Iter)
				near(t, d.Steps[n].Loss, s.Loss, tolerance*10, "loss") // gradients are below 10 here
				for i, v := range d.Steps[n].Vectors {
					nearVector(t, v, s.Layers[i].Params.Vector, tolerance)
				}
			}
			require.Equal(t, StopMaxIters, result.Stop)
			require.Equal(t, 10, result.Iters)
		})
	}
}

// What a result says is bit for bit what was evaluated last.
func TestResultIsWhatWasEvaluated(t *testing.T) {
	job := referenceCaseNamed(t, "two layers").job(t)
	job.LR, job.MaxIters, job.OnlyHookPrompt = ptr(0.1), ptr(3), true
	m := newFake()
	var steps []Step
	r, err := run(context.Background(), m, job, func(s Step) { steps = append(steps, s) })
	require.NoError(t, err)
	last := steps[3]
	require.Equal(t, last.Loss, r.Loss)
	require.Equal(t, last.Losses, r.Losses)
	require.Equal(t, map[string]float64{"0": last.Layers[0].Norm, "1": last.Layers[1].Norm}, r.Norms)
	require.Equal(t, map[string]float64{"0": 0.1, "1": 0.1}, r.LR)
	require.Equal(t, 7, r.TokensPerStep)
	require.True(t, r.SecondsPerStep > 0)
	for i := range 2 {
		v := r.Steering.Params[i].Vector
		require.Equal(t, last.Layers[i].Params.Vector, v)
		require.Equal(t, m.session.ops[i].Vectors[0], v)
		require.Equal(t, norm(v), last.Layers[i].Norm)
		require.Equal(t, norm(last.Layers[i].Gradient.Vector), last.Layers[i].GradientNorm)
	}
	require.True(t, m.session.closed)
	s := r.Steering
	require.NoError(t, s.Validate())
	require.Equal(t, loader.Add, s.Kind)
	require.Equal(t, []int{0, 1}, s.Layers)
	require.True(t, s.PromptOnly)
	require.Equal(t, []any{"analytic", 3, "fake"}, []any{s.Arch, s.Embd, s.Model})
	require.NotNil(t, r.Losses[1][0], "an empty list is not nil")
	// the steps are the receiver's: later ones do not change them, nor the start
	require.Equal(t, job.Start["0"].Vector, steps[0].Layers[0].Params.Vector)
	require.NotEqual(t, steps[0].Layers[0].Params.Vector, steps[1].Layers[0].Params.Vector)
	require.Equal(t, referenceCaseNamed(t, "two layers").Start[0], job.Start["0"].Vector)
}

func referenceCaseNamed(t *testing.T, name string) referenceCase {
	t.Helper()
	i := slices.IndexFunc(reference.Cases, func(c referenceCase) bool { return c.Name == name })
	require.True(t, i >= 0)
	return reference.Cases[i]
}

// scripted is a job whose loss in evaluation n is losses[n], the sum of those of
// two completions, on a model that says so.
func scripted(losses ...float64) (*Job, *fakeModel) {
	job := &Job{Options: DefaultOptions(), Layers: Layers{List: []int{1}}, Examples: []Example{{Prompt: "a", Dst: []string{"b", "c"}}}}
	job.Eps = 0
	job.LR = ptr(0.1)
	m := newFake()
	m.forwardHook = func(n int, probs [][]ggmlsteer.Prob) error {
		if n >= len(losses) {
			return errors.New("evaluated more often than the test expects")
		}
		for i, share := range []float64{0.25, 0.75} {
			probs[i][0].Log = -losses[n] * share
			if job.Eps > 0 {
				probs[i][0].Log = math.Log(math.Exp(probs[i][0].Log) - job.Eps)
			}
		}
		return nil
	}
	return job, m
}

func TestStopRules(t *testing.T) {
	for _, c := range []struct {
		name   string
		losses []float64
		change func(*Job)
		stop   Stop
		iters  int
	}{
		{"a target is met when equal", []float64{9, 8, 4}, func(j *Job) { j.TargetLoss = ptr(4.0) }, StopTarget, 2},
		{"a target met at the start takes no step", []float64{3}, func(j *Job) { j.TargetLoss = ptr(4.0) }, StopTarget, 0},
		{"patience counts the steps in a row that meet the target", []float64{9, 3, 9, 3, 2, 1},
			func(j *Job) { j.TargetLoss, j.TargetLossTargetIters = ptr(4.0), 3 }, StopTarget, 5},
		{"the last evaluation may meet the target", []float64{9, 8, 4}, func(j *Job) { j.TargetLoss, j.MaxIters = ptr(4.0), ptr(2) }, StopTarget, 2},
		{"exactly max_iters steps", []float64{9, 8, 7, 6}, func(j *Job) { j.MaxIters = ptr(3) }, StopMaxIters, 3},
		{"no step at all", []float64{9}, func(j *Job) { j.MaxIters = ptr(0) }, StopMaxIters, 0},
		{"no step at all, and the target is met", []float64{3}, func(j *Job) { j.MaxIters, j.TargetLoss = ptr(0), ptr(3.0) }, StopTarget, 0},
		{"a stall is a change below eps", []float64{3, 2, 1.5, 1.51}, func(j *Job) { j.Eps = 1.0 / 64 }, StopStalled, 3},
		{"a larger change is none", []float64{3, 2, 1.5, 1.52}, func(j *Job) { j.Eps, j.MaxIters = 1.0/64, ptr(3) }, StopMaxIters, 3},
		{"without eps nothing stalls", []float64{3, 3, 3}, func(j *Job) { j.MaxIters = ptr(2) }, StopMaxIters, 2},
		{"patience counts stalled steps in a row", []float64{3, 2.99, 1, 0.99, 0.99, 0.98},
			func(j *Job) { j.Eps, j.TargetLossTargetIters = 1.0/64, 3 }, StopStalled, 5},
		{"a stall goes before max_iters", []float64{3, 3}, func(j *Job) { j.Eps, j.MaxIters = 1.0/64, ptr(1) }, StopStalled, 1},
		{"a target goes before a stall", []float64{3.005, 3}, func(j *Job) { j.Eps, j.TargetLoss = 1.0/64, ptr(3.001) }, StopTarget, 1},
		{"each completion against the target", []float64{8, 5, 4}, func(j *Job) { j.TargetLoss, j.DoTargetLossSum = ptr(3.0), false }, StopTarget, 2},
		{"each completion against its own target", []float64{16, 8},
			func(j *Job) { j.DoTargetLossSum, j.Examples[0].DstTargets = false, []float64{2, 7} }, StopTarget, 1},
		{"the sum against target_loss, whatever the completions' own", []float64{16, 8, 4},
			func(j *Job) { j.TargetLoss, j.Examples[0].DstTargets = ptr(4.0), []float64{2, 7} }, StopTarget, 2},
		{"own targets are none of the sum", []float64{8, 4}, func(j *Job) { j.MaxIters, j.Examples[0].DstTargets = ptr(1), []float64{2, 7} }, StopMaxIters, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			job, m := scripted(c.losses...)
			c.change(job)
			calls := 0
			r, err := run(context.Background(), m, job, func(Step) { calls++ })
			require.NoError(t, err)
			require.Equal(t, c.stop, r.Stop)
			require.Equal(t, c.iters, r.Iters)
			require.Equal(t, c.iters+1, calls)
			require.Equal(t, len(c.losses), m.session.forwards)
			near(t, c.losses[c.iters], r.Loss, 1e-12, "loss")
		})
	}
}

// The limits themselves, without the rounding of a loss.
func TestStoppingAtEquality(t *testing.T) {
	s := stopping{job: &Job{Options: DefaultOptions()}}
	s.job.Eps = 0.5
	require.Equal(t, Stop(""), s.reason(&Step{Iter: 0, Loss: 0.25}, nil)) // nothing came before
	require.Equal(t, Stop(""), s.reason(&Step{Iter: 1, Loss: 0.75}, nil), "a change of eps is not below it")
	require.Equal(t, StopStalled, s.reason(&Step{Iter: 2, Loss: 0.5}, nil))
}

// Target and stall look at the total, regularizers included.
func TestTotalIncludesRegularizers(t *testing.T) {
	job, m := scripted(6, 6)
	job.Layers.List = []int{0, 1}
	job.SparsityWeight, job.RegularizationWeight, job.EntropyWeight = 1, 0, 0
	job.TargetLoss, job.MaxIters = ptr(7.0), ptr(1)
	r, err := run(context.Background(), m, job, nil)
	require.NoError(t, err)
	require.Equal(t, StopMaxIters, r.Stop)
	near(t, 6+r.Norms["0"]+r.Norms["1"], r.Loss, 1e-12, "total")
	near(t, 6, r.Losses[0][1][0]+r.Losses[0][1][1], 1e-12, "the completions' own")

	for _, change := range []func(*Job){
		func(j *Job) { j.Layers.List = []int{1} },
		func(j *Job) { j.Shared = true },
	} {
		job, m := scripted(6)
		job.Layers.List = []int{0, 1}
		job.SparsityWeight, job.TargetLoss = 1, ptr(7.0)
		change(job)
		r, err := run(context.Background(), m, job, nil)
		require.NoError(t, err)
		require.Equal(t, StopTarget, r.Stop, "one vector has no regularizer")
		near(t, 6, r.Loss, 1e-12, "total")
	}
}

// Satisfice changes what is descended in, not what is reported or tested.
func TestSatisficeReportsPlainLosses(t *testing.T) {
	job, m := scripted(8, 4)
	job.Satisfice, job.TargetLoss = true, ptr(5.0)
	var slopes [][]float64
	m.backwardHook = func(n int, weights [][]float64, _ []ggmlsteer.Operation) error {
		if n == 0 {
			slopes = weights
		}
		return nil
	}
	r, err := run(context.Background(), m, job, nil)
	require.NoError(t, err)
	require.Equal(t, StopTarget, r.Stop)
	require.Equal(t, 1, r.Iters)
	near(t, 4, r.Loss, 1e-12, "loss")
	require.Equal(t, [][]float64{{-2 * (2 - 5)}, {-2 * (6 - 5)}}, slopes)
}

// max_norm leaves a longer start as it is, and limits what comes after.
func TestMaxNorm(t *testing.T) {
	job, m := scripted(9, 8, 7)
	job.MaxIters, job.MaxNorm, job.StartingNorm, job.LR = ptr(2), ptr(2.0), ptr(5.0), ptr(0.001)
	var norms []float64
	_, err := run(context.Background(), m, job, func(s Step) { norms = append(norms, s.Layers[0].Norm) })
	require.NoError(t, err)
	const float32Rounding = 1e-6
	near(t, 5, norms[0], float32Rounding, "start")
	near(t, 2, norms[1], float32Rounding, "after a step")
	require.True(t, norms[2] <= 2+float32Rounding)
	short := []float32{0.5, 0.25}
	limit(short, 2)
	require.Equal(t, []float32{0.5, 0.25}, short, "a short vector stays")
}

// An interrupt keeps the evaluated parameters of lowest total loss.
func TestInterrupt(t *testing.T) {
	for name, stopAt := range map[string]func(cancel func()) (forward func(int), progress func(Step)){
		"between steps": func(cancel func()) (func(int), func(Step)) {
			return func(int) {}, func(s Step) {
				if s.Iter == 3 {
					cancel()
				}
			}
		},
		"during an evaluation": func(cancel func()) (func(int), func(Step)) {
			return func(n int) {
				if n == 4 {
					cancel()
				}
			}, func(Step) {}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(context.Background())
			cause := errors.New("the user had enough")
			forward, progress := stopAt(func() { cancel(cause) })
			job, m := scripted(9, 5, 7, 6, 1)
			hook := m.forwardHook
			m.forwardHook = func(n int, probs [][]ggmlsteer.Prob) error {
				forward(n)
				if ctx.Err() != nil {
					return context.Cause(ctx) // as the engine does
				}
				return hook(n, probs)
			}
			var steps []Step
			r, err := run(ctx, m, job, func(s Step) { steps = append(steps, s); progress(s) })
			require.NoError(t, err)
			require.Equal(t, StopInterrupted, r.Stop)
			require.Len(t, steps, 4)
			require.Equal(t, 3, r.Iters, "steps that were evaluated")
			near(t, 5, r.Loss, 1e-12, "loss")
			require.Equal(t, steps[1].Losses, r.Losses)
			require.Equal(t, steps[1].Layers[0].Params.Vector, r.Steering.Params[0].Vector)
			require.Equal(t, steps[1].Layers[0].Norm, r.Norms["1"])
		})
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("at once")
	cancel(cause)
	job, m := scripted()
	_, err := run(ctx, m, job, nil)
	require.Equal(t, cause, err, "nothing was evaluated")
	require.True(t, m.session == nil || m.session.forwards == 0)
}

// A loss or gradient that is not finite ends the run, and the error says whose and when.
func TestNotFinite(t *testing.T) {
	job, m := scripted(9, 8, 7)
	hook := m.forwardHook
	m.forwardHook = func(n int, probs [][]ggmlsteer.Prob) error {
		err := hook(n, probs)
		if n == 2 {
			probs[1][0].Log = math.NaN()
		}
		return err
	}
	calls := 0
	_, err := run(context.Background(), m, job, func(Step) { calls++ })
	require.EqualError(t, err, `after 2 steps the loss of examples[0].dst_completions[1] ("c") is NaN; a smaller lr than 0.1, a max_norm or an eps above 0 may help`)
	require.Equal(t, 2, calls)
	require.False(t, errors.As(err, new(*loader.InputError)), "it is a failure of the work")
	require.True(t, m.session.closed)

	job, m = scripted(9)
	job.Eps = 0
	m.forwardHook = func(_ int, probs [][]ggmlsteer.Prob) error {
		probs[0][0].Log = math.Inf(-1)
		return nil
	}
	_, err = run(context.Background(), m, job, nil)
	require.ErrorContains(t, err, `after 0 steps the loss of examples[0].dst_completions[0] ("b") is +Inf; another start`)

	// the gradient of the second completion alone is at fault
	job, m = scripted(9, 8)
	m.backwardHook = func(n int, weights [][]float64, gradients []ggmlsteer.Operation) error {
		if n > 0 && weights[1][0] != 0 {
			gradients[0].Vectors[0][2] = float32(math.Inf(1))
		}
		return nil
	}
	_, err = run(context.Background(), m, job, nil)
	require.ErrorContains(t, err, `after 1 steps the gradient of the loss of examples[0].dst_completions[1] ("c") is not finite`)

	// none is, but their sum
	job, m = scripted(9)
	m.backwardHook = func(_ int, weights [][]float64, gradients []ggmlsteer.Operation) error {
		if weights[0][0] != 0 && weights[1][0] != 0 {
			gradients[0].Vectors[0][2] = float32(math.NaN())
		}
		return nil
	}
	_, err = run(context.Background(), m, job, nil)
	require.ErrorContains(t, err, "the gradient of the sum of the losses is not finite")
}

func TestModelWithoutGradientIsRefusedFirst(t *testing.T) {
	job, m := scripted()
	m.noGrad = &loader.InputError{Message: "analytic: no gradient"}
	_, err := run(context.Background(), m, job, nil)
	require.Equal(t, m.noGrad, err)
	require.Nil(t, m.session)
	require.Nil(t, m.streamsOf)
}

// do_relative_scale measures each layer's vector in units of 0.01 of the norm at position 0, over √width:
// its rate, its start, its bound and what the regularizers see of it.
func TestRelativeScale(t *testing.T) {
	first := func(change func(*Job)) ([]Step, *Result) {
		job := &Job{Options: DefaultOptions(), Layers: Layers{List: []int{0, 1}}, Examples: []Example{{Prompt: "ab", Src: []string{"c"}, Dst: []string{"cd"}}}}
		job.LR, job.MaxIters, job.DoRelativeScale, job.SparsityWeight, job.EntropyWeight = ptr(5.0), ptr(1), true, 0, 0
		change(job)
		var steps []Step
		m := newFake()
		m.streams = [][][]float64{{{300, 10, 10, 10}, {300, 10, 10, 10, 10}}, {{400, 20, 20, 20}, {400, 20, 20, 20, 20}}}
		r, err := run(context.Background(), m, job, func(s Step) { steps = append(steps, s) })
		require.NoError(t, err)
		return steps, r
	}
	units := []float64{0.01 * 300 / math.Sqrt(3), 0.01 * 400 / math.Sqrt(3)}

	steps, r := first(func(j *Job) { j.MaxNorm = ptr(1.25) })
	bare, _ := first(func(j *Job) { j.RegularizationWeight = 0 })
	_, auto := first(func(j *Job) { j.LR = nil })
	started, _ := first(func(j *Job) { j.StartingNorm = ptr(0.5) })
	sum := 0.0
	for i, key := range []string{"0", "1"} {
		near(t, 5*units[i], r.LR[key], 1e-12, "lr")
		near(t, 0.01*float64(10*(i+1))/math.Sqrt(3), auto.LR[key], 1e-12, "automatic lr, which has its own measure")
		near(t, units[i], steps[0].Layers[i].Norm, 1e-6, "start")
		near(t, 0.5*units[i], started[0].Layers[i].Norm, 1e-6, "half the start")
		near(t, 1.25*units[i], steps[1].Layers[i].Norm, 1e-6, "bound")
		for n, x := range steps[0].Layers[i].Params.Vector {
			sum += 0.01 * math.Abs(float64(x)) / units[i]
			slope := float64(steps[0].Layers[i].Gradient.Vector[n]) - float64(bare[0].Layers[i].Gradient.Vector[n])
			near(t, math.Copysign(0.01/units[i], float64(x)), slope, 1e-6, "slope of the l1 term")
		}
	}
	near(t, sum, steps[0].Loss-bare[0].Loss, 1e-6, "the l1 term")
	none, _ := first(func(j *Job) { j.RegularizationWeight, j.SparsityWeight, j.EntropyWeight = 0, 0.1, 0.01 })
	near(t, 0.1*2+0.01*math.Ln2, none[0].Loss-bare[0].Loss, 1e-6, "of two vectors of one unit")
}

// lr auto is 1 % of each layer's median norm over √width, over all tokens of all examples but
// the first, with a prompt counted once.
func TestAutoLR(t *testing.T) {
	job := &Job{Options: DefaultOptions(), Layers: Layers{List: []int{0, 1}}, Examples: []Example{
		{Prompt: "ab", Src: []string{"c"}, Dst: []string{"cd"}}, {Prompt: "", Dst: []string{"a"}},
	}}
	job.MaxIters = ptr(0)
	m := newFake()
	const bos, twice = 1e9, 1e6
	m.streams = [][][]float64{
		{{bos, 1, 2, 3}, {bos, twice, twice, 4, 5}, {bos, 6}},
		{{bos, 60, 20, 10}, {bos, twice, twice, 50, 40}, {bos, 30}},
	}
	r, err := run(context.Background(), m, job, nil)
	require.NoError(t, err)
	require.Equal(t, [][]ggmlsteer.Token{{0, 1, 2, 3}, {0, 1, 2, 3, 4}, {0, 1}}, m.streamsOf)
	near(t, 0.01*3.5/math.Sqrt(3), r.LR["0"], 1e-15, "layer 0")
	near(t, 0.01*35/math.Sqrt(3), r.LR["1"], 1e-15, "layer 1")

	job.Shared = true
	r, err = run(context.Background(), m, job, nil)
	require.NoError(t, err)
	require.Len(t, r.LR, 1)
	near(t, 0.01*3.5/math.Sqrt(3), r.LR["shared"], 1e-15, "the smallest")

	// it is what each layer's vector moves by
	job.Shared, job.MaxIters = false, ptr(1)
	var steps []Step
	r, err = run(context.Background(), m, job, func(s Step) { steps = append(steps, s) })
	require.NoError(t, err)
	for i, key := range []string{"0", "1"} {
		before, after := steps[0].Layers[i].Params.Vector[0], steps[1].Layers[i].Params.Vector[0]
		near(t, r.LR[key], math.Abs(float64(after)-float64(before)), 1e-6, "first step")
	}

	m.streams = [][][]float64{{{1, 0, 0, 0}, {1, 0, 0, 0, 0}, {1, 0}}, m.streams[1]}
	_, err = run(context.Background(), m, job, nil)
	require.Contains(t, inputError(t, err).Message, "no step size can be chosen")

	job.LR = ptr(0.25)
	m.streamsOf = nil
	r, err = run(context.Background(), m, job, nil)
	require.NoError(t, err)
	require.Equal(t, map[string]float64{"0": 0.25, "1": 0.25}, r.LR)
	require.Nil(t, m.streamsOf, "a number needs no stream")
}

// A layer starts at the same direction whichever other layers are steered.
func TestRandomStart(t *testing.T) {
	starts := func(seed uint64, shared bool, layers ...int) [][]float32 {
		job := Job{Options: DefaultOptions(), Shared: shared, Layers: Layers{List: layers}}
		job.Seed = seed
		params, err := job.startAt(layers, 64, slices.Repeat([]float64{1}, len(layers)))
		require.NoError(t, err)
		var vectors [][]float32
		for _, p := range params {
			near(t, 1, norm(p.Vector), 1e-6, "norm")
			vectors = append(vectors, p.Vector)
		}
		return vectors
	}
	all := starts(0, false, 0, 1, 7)
	require.Equal(t, all[1:], starts(0, false, 1, 7))
	require.Equal(t, all[1:2], starts(0, true, 1, 7))
	require.NotEqual(t, all[0], starts(1, false, 0)[0])
	// directions of layers and seeds have nothing to do with each other: a cosine's
	// standard deviation is 1/√64
	all = append(all, starts(1, false, 0, 1, 7)...)
	for i := range all {
		for k := range i {
			cosine := 0.0
			for n := range all[i] {
				cosine += float64(all[i][n]) * float64(all[k][n])
			}
			near(t, 0, cosine, 0.5, "cosine")
		}
	}
	// a file made with a seed can be made again by any later release
	v := randomDirection(42, 10, 4, 2)
	require.Equal(t, []float32{-0.9456832, 0.41289422, 1.2996215, 1.1163269}, v)
}

// Rows of L and R start at starting_affine_norm, which is 0.1 where lr is auto and 1 where it is a
// number, each in a direction of its own.
func TestAffineStart(t *testing.T) {
	for _, c := range []struct {
		lr, given *float64
		expected  float64
	}{{nil, nil, 0.1}, {ptr(0.01), nil, 1}, {nil, ptr(0.5), 0.5}, {ptr(0.01), ptr(0.5), 0.5}} {
		job := Job{Options: DefaultOptions(), Layers: Layers{List: []int{0, 1}}}
		job.AffineRank, job.LR, job.StartingAffineNorm = ptr(2), c.lr, c.given
		params, err := job.startAt([]int{0, 1}, 64, []float64{1, 1})
		require.NoError(t, err)
		var all [][]float32
		for _, p := range params {
			require.Len(t, p.Left, 2)
			require.Len(t, p.Right, 2)
			for i, row := range rows(p) {
				if i > 0 {
					near(t, c.expected, norm(row), 1e-6, "norm of a row")
				}
				for _, other := range all { // a cosine's standard deviation is 1/√64
					near(t, 0, dot(doubles(row), doubles(other))/(norm(row)*norm(other)), 0.6, "cosine")
				}
				all = append(all, row)
			}
		}
	}
}

func TestStart(t *testing.T) {
	vector := loader.Parameters{Vector: []float32{1, 2, 3}}
	for _, c := range []struct {
		name, message string
		change        func(*Job)
	}{
		{"given", "", func(j *Job) { j.Start["1"] = vector }},
		{"given for some", "", func(j *Job) { j.Layers.List = []int{0, 1}; j.Start["0"] = vector }},
		{"given for shared", "", func(j *Job) { j.Shared = true; j.Start["shared"] = vector }},
		{"zero", "", func(j *Job) { j.StartingNorm = ptr(0.0) }},
		{"another layer", "start.0: that is not steered", func(j *Job) { j.Start["0"] = vector }},
		{"a layer of shared ones", "start.1: that is not steered", func(j *Job) { j.Shared = true; j.Start["1"] = vector }},
		{"shared of ones that are not", "start.shared: that is not steered", func(j *Job) { j.Start["shared"] = vector }},
		{"width", "start.1.vector: expected the model's width of 3 numbers, found 2", func(j *Job) { j.Start["1"] = loader.Parameters{Vector: []float32{1, 2}} }},
		{"no vector", "start.1.vector: expected the model's width of 3 numbers, found 0", func(j *Job) { j.Start["1"] = loader.Parameters{} }},
		{"not finite", "start.1.vector: expected finite numbers", func(j *Job) { j.Start["1"] = loader.Parameters{Vector: []float32{1, float32(math.Inf(1)), 3}} }},
		{"matrix", "start.1: a matrix is for affine", func(j *Job) {
			j.Start["1"] = loader.Parameters{Vector: vector.Vector, Left: [][]float32{{1, 2, 3}}, Right: [][]float32{{1, 2, 3}}}
		}},
		{"no direction to clamp along", "start.1.vector: clamp steering takes the stream's part along v, and v = 0 has no direction", func(j *Job) {
			j.VectorClamp, j.Start["1"] = ptr(1.0), loader.Parameters{Vector: []float32{0, 0, 0}}
		}},
		{"no direction to ablate", "start.1.vector: ablate steering takes the stream's part along v, and v = 0 has no direction", func(j *Job) {
			j.VectorClamp, j.Start["1"] = ptr(0.0), loader.Parameters{Vector: []float32{0, 0, 0}}
		}},
		{"norm", "starting_norm: expected a norm that float32 holds, found 1e+40", func(j *Job) { j.StartingNorm = ptr(1e40) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			job, m := scripted(5)
			job.MaxIters, job.Start = ptr(0), map[string]loader.Parameters{}
			c.change(job)
			r, err := run(context.Background(), m, job, nil)
			if c.message != "" {
				require.Contains(t, inputError(t, err).Message, c.message)
				require.Nil(t, m.session)
				return
			}
			require.NoError(t, err)
			for i, key := range job.layerKeys(r.Steering.Layers) {
				if given, ok := job.Start[key]; ok {
					require.Equal(t, given.Vector, r.Steering.Params[i].Vector)
				}
			}
		})
	}
}

// The recipe in the steering file is the job, with what it left to be chosen,
// and finds the same steering.
func TestRecipe(t *testing.T) {
	for _, name := range []string{"defaults", "two layers, max", "shared", "satisfice"} {
		t.Run(name, func(t *testing.T) {
			job := referenceCaseNamed(t, name).job(t)
			job.ParseSpecial = name == "shared"
			job.MaxIters, job.MaxNorm, job.Seed, job.TargetLossTargetIters = ptr(4), ptr(3.5), math.MaxUint64, 2
			job.Examples[0].Token = span(t, "1:-1:2")
			first, err := run(context.Background(), newFake(), job, nil)
			require.NoError(t, err)
			again, err := ReadJob("recipe", []byte(first.Steering.Recipe))
			require.NoError(t, err)

			used := *job
			used.StartingNorm = ptr(1.0)
			if len(first.LR) == 1 {
				for _, lr := range first.LR {
					used.LR = &lr
				}
			}
			text, err := used.recipe()
			require.NoError(t, err)
			require.Equal(t, text, first.Steering.Recipe)
			used.Examples[1].Src = []string{} // written as an empty list
			require.Equal(t, &used, again)

			second, err := run(context.Background(), newFake(), again, nil)
			require.NoError(t, err)
			second.SecondsPerStep = first.SecondsPerStep
			require.Equal(t, first, second)

			var keys map[string]any
			require.NoError(t, json.Unmarshal([]byte(first.Steering.Recipe), &keys))
			for _, o := range OptionTable() {
				require.Contains(t, keys, o.Name)
			}
		})
	}
	// texts are kept as people wrote them
	job, m := scripted(5)
	job.MaxIters, job.Layers = ptr(0), Layers{All: true}
	hard := "<h2>\\u0041 \\ \"café\" 🎈 \u2028\u2029\u0085\u007f\ufeff\t\x01</h2>\n"
	m.noBOS = true
	job.Examples[0].Prompt, job.Examples[0].Dst = "ab", []string{"c", "d"}
	job.System, job.Chat = "abc", true
	r, err := run(context.Background(), m, job, nil)
	require.NoError(t, err)
	job.Examples[0].Prompt = hard
	recipe, err := job.recipe()
	require.NoError(t, err)
	require.Contains(t, recipe, "<h2>")
	again, err := ReadJob("recipe", []byte(recipe))
	require.NoError(t, err)
	require.Equal(t, hard, again.Examples[0].Prompt)
	require.Equal(t, Layers{All: true}, again.Layers)
	require.Equal(t, []any{true, "abc"}, []any{again.Chat, again.System})
	require.False(t, strings.Contains(r.Steering.Recipe, "context"))
}
