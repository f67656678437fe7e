package optimize

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// newObjective is the job's objective on the fake model, and where it starts.
func newObjective(t *testing.T, m *fakeModel, job *Job) (*objective, []loader.Parameters) {
	t.Helper()
	s, err := newSetup(context.Background(), m, job)
	require.NoError(t, err)
	o := s.objective()
	t.Cleanup(func() { o.close() })
	return o, s.params
}

const (
	// losses are sums of a few dozen float64 operations on numbers below 100
	lossTolerance = 1e-12
	// a gradient is rounded to float32 at the engine's border for each layer, and after
	// summing: a few times 2⁻²⁴, relative to its norm
	gradientTolerance = 4.0 / (1 << 24)
)

// Losses and gradients of every variant are those of testdata/reference.py, which
// knows neither the formulas of the derivatives nor this code.
func TestReference(t *testing.T) {
	require.NotEmpty(t, reference.Cases)
	for _, c := range reference.Cases {
		t.Run(c.Name, func(t *testing.T) {
			o, params := newObjective(t, newFake(), c.job(t))
			e, err := o.evaluate(context.Background(), params, 0)
			require.NoError(t, err)
			for i, s := range reference.Sequences {
				sequence := o.session.(*fakeSession).sequences[i]
				require.Equal(t, s.Tokens, sequence.Tokens)
				require.Equal(t, s.Prompt, sequence.Prompt)
				require.Equal(t, [][]float32{s.Strengths}, sequence.Vector)
			}
			require.InEpsilon(t, c.Loss, e.loss, lossTolerance)
			for i, s := range o.completions {
				near(t, c.Losses[i], e.losses[s.example][s.side][s.index], lossTolerance, s.name)
			}
			require.Len(t, e.gradient, len(c.Gradient))
			for i := range c.Gradient {
				nearVector(t, c.Gradient[i], e.gradient[i].Vector, gradientTolerance)
			}
		})
	}
}

func near(t *testing.T, expected, found, tolerance float64, what string) {
	t.Helper()
	require.True(t, math.Abs(found-expected) <= tolerance, "%s: expected %v, found %v", what, expected, found)
}

// nearVector requires a distance of at most tolerance times the norm.
func nearVector(t *testing.T, expected []float64, found []float32, tolerance float64) {
	t.Helper()
	require.Len(t, found, len(expected))
	var distance, square float64
	for i, x := range expected {
		distance = math.Hypot(distance, float64(found[i])-x)
		square = math.Hypot(square, x)
	}
	require.True(t, distance <= tolerance*square, "expected %v, found %v: %g of the norm apart", expected, found, distance/square)
}

// The gradient agrees with differences of what is minimized, for each kind of
// loss with each kind of regularizer, mask and sign.
func TestGradientIsThatOfTheLoss(t *testing.T) {
	losses := map[string]func(*Job){
		"one-minus":  func(*Job) {},
		"plain src":  func(j *Job) { j.DoOneMinus = false },
		"normalized": func(j *Job) { j.NormalizeTokenLength = true },
		"satisfice":  func(j *Job) { j.Satisfice = true; j.TargetLoss = ptr(0.75) },
		"cold":       func(j *Job) { j.Coldness, j.Eps = 2, 0.01 },
		"no epsilon": func(j *Job) { j.Eps = 0 },
	}
	where := map[string]func(*Job){
		"one layer": func(j *Job) { j.Layers.List = []int{1} },
		"all, l1":   func(j *Job) { j.Layers.All = true },
		"all, max":  func(j *Job) { j.Layers.All, j.RegularizationType = true, "max" },
		"shared":    func(j *Job) { j.Layers.All, j.Shared = true, true },
	}
	masks := map[string]func(*Job){
		"everywhere":  func(*Job) {},
		"prompt only": func(j *Job) { j.OnlyHookPrompt = true },
		"masked":      func(j *Job) { j.Examples[0].Token = span(t, "1::2"); j.Examples[1].Token = span(t, "-2") },
		"negative":    func(j *Job) { j.Examples[0].Negative = true },
	}
	for loss, setLoss := range losses {
		for place, setPlace := range where {
			for mask, setMask := range masks {
				t.Run(fmt.Sprintf("%s, %s, %s", loss, place, mask), func(t *testing.T) {
					job := &Job{
						Options: DefaultOptions(),
						Examples: []Example{
							{Prompt: "ca", Src: []string{"bd", "a"}, Dst: []string{"d"}},
							{Prompt: "b", Src: []string{"ac"}, Dst: []string{"bca", "a"}},
						},
					}
					job.RegularizationWeight, job.SparsityWeight, job.EntropyWeight, job.StartingNorm = 0.3, 0.4, 2, ptr(1.5)
					setLoss(job)
					setPlace(job)
					setMask(job)
					o, params := newObjective(t, newFake(), job)
					for i := range params { // exact steps: multiples of 2⁻¹²
						for k, x := range params[i].Vector {
							params[i].Vector[k] = float32(math.Round(float64(x)*4096) / 4096)
							require.True(t, math.Abs(float64(params[i].Vector[k])) > 4*step, "a kink of |x| is too near")
						}
					}
					e, err := o.evaluate(context.Background(), params, 0)
					require.NoError(t, err)
					for i := range params {
						nearVector(t, differences(t, o, params, i), e.gradient[i].Vector, differenceTolerance)
					}
				})
			}
		}
	}
}

const (
	step = 1.0 / 1024
	// the truncation error of differences of fourth order is step⁴/30 ≈ 3e-14 times a fifth
	// derivative, and their rounding error 1e-13; both below that of float32 gradients
	differenceTolerance = 1e-6
)

// differences is the gradient of what is minimized with respect to the i-th vector.
func differences(t *testing.T, o *objective, params []loader.Parameters, i int) []float64 {
	gradient := make([]float64, len(params[i].Vector))
	for k := range gradient {
		at := func(h float64) float64 {
			moved := clone(params)
			moved[i].Vector[k] += float32(h)
			e, err := o.evaluate(context.Background(), moved, 0)
			require.NoError(t, err)
			if !o.job.Satisfice {
				return e.loss
			}
			minimized := e.loss
			for _, c := range o.completions {
				loss := e.losses[c.example][c.side][c.index]
				minimized += (loss-*c.target)*(loss-*c.target) - loss
			}
			return minimized
		}
		gradient[k] = (8*(at(step)-at(-step)) - (at(2*step) - at(-2*step))) / (12 * step)
	}
	return gradient
}

// Near p = 0 and p = 1 losses and slopes keep their digits.
func TestTokenLossAtTheEnds(t *testing.T) {
	o := DefaultOptions()
	for _, c := range []struct {
		name        string
		src, plain  bool
		eps         float64
		prob        ggmlsteer.Prob
		loss, slope float64
	}{
		{"dst, p = 0", false, false, 1e-6, ggmlsteer.Prob{Log: -1e4}, -math.Log(1e-6), 0},
		{"dst, p = 0, no epsilon", false, false, 0, ggmlsteer.Prob{Log: -1e4}, 1e4, -1},
		{"dst, p = ε", false, false, 1e-6, ggmlsteer.Prob{Log: math.Log(1e-6)}, -math.Log(2e-6), -0.5},
		{"dst, p = 1", false, false, 1e-6, ggmlsteer.Prob{LogComplement: -50}, -1e-6, -1 / (1 + 1e-6)},
		{"src, p = 0", true, false, 1e-6, ggmlsteer.Prob{Log: -1e4}, -1e-6, 0},
		{"src, 1 − p = 1e-9", true, false, 1e-6, ggmlsteer.Prob{Log: -1e-9, LogComplement: math.Log(1e-9)}, -math.Log(1.001e-6), 1 / 1.001e-6},
		{"src, 1 − p = 1e-9, no epsilon", true, false, 0, ggmlsteer.Prob{Log: -1e-9, LogComplement: math.Log(1e-9)}, -math.Log(1e-9), 1e9},
		{"src, p = 1", true, false, 1e-6, ggmlsteer.Prob{LogComplement: math.Inf(-1)}, -math.Log(1e-6), 1e6},
		{"plain src, p = 0", true, true, 1e-6, ggmlsteer.Prob{Log: -1e4}, math.Log(1e-6), 0},
		{"plain src, p = ε", true, true, 1e-6, ggmlsteer.Prob{Log: math.Log(1e-6)}, math.Log(2e-6), 0.5},
	} {
		t.Run(c.name, func(t *testing.T) {
			o.Eps, o.DoOneMinus = c.eps, !c.plain
			loss, slope := o.tokenLoss(c.src, c.prob)
			// −log(1 + 1e-6) is −1e-6 up to its square
			near(t, c.loss, loss, 1e-12, "loss")
			require.True(t, math.Abs(slope-c.slope) <= 1e-8*math.Abs(c.slope)+1e-300, "slope: expected %v, found %v", c.slope, slope)
		})
	}
}

// At a zero vector, or a zero component of l1, regularizers have no gradient.
func TestRegularizersAtZero(t *testing.T) {
	o := DefaultOptions()
	for _, kind := range []string{"l1", "max"} {
		o.RegularizationType = kind
		gradient := [][]float64{{0, 0, 0}, {0, 0, 0}}
		total := o.regularize([][]float64{{0, 0, 0}, {0, 0, 0}}, gradient)
		near(t, o.EntropyWeight*math.Log(2), total, 1e-15, "two equal norms")
		require.Equal(t, [][]float64{{0, 0, 0}, {0, 0, 0}}, gradient)
	}
	o = Options{RegularizationType: "l1", RegularizationWeight: 1}
	gradient := [][]float64{{0, 0, 0}, {10, 10, 10}}
	require.Equal(t, 7.0, o.regularize([][]float64{{2, 0, -3}, {0, 0, 2}}, gradient))
	require.Equal(t, [][]float64{{1, 0, -1}, {10, 10, 11}}, gradient, "added to what is there")
	o.RegularizationType = "max"
	gradient = [][]float64{{0, 0, 0}, {0, 0, 0}}
	require.Equal(t, 5.0, o.regularize([][]float64{{2, 0, -3}, {-2, 0, 2}}, gradient))
	require.Equal(t, [][]float64{{0, 0, -1}, {-0.5, 0, 0.5}}, gradient, "shared among the largest")
}

// Norms that are far apart do not spoil the entropy.
func TestEntropyOfExtremeNorms(t *testing.T) {
	entropy, gradient := softmaxEntropy([]float64{5000, 0, 1})
	require.Equal(t, 0.0, entropy)
	require.Equal(t, []float64{0, 0, 0}, gradient)
	entropy, gradient = softmaxEntropy([]float64{1e6, 1e6})
	near(t, math.Log(2), entropy, 1e-9, "entropy")
	near(t, 0, gradient[0], 1e-9, "slope")
}
