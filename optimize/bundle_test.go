package optimize

import (
	"context"
	"math"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
)

// vectorOf are the parameters, or the gradient, of one layer.
func vectorOf(v ...float32) []loader.Parameters { return []loader.Parameters{{Vector: v}} }

// The first step is Polyak's: it goes where the tangent is as low as the goal, along a gradient
// in which steep numbers count for less. The metric of equally steep numbers is Euclid's.
func TestBundleFirstStep(t *testing.T) {
	const lr = 0.5
	for _, c := range []struct {
		gradient []float32
		target   float64
	}{
		{[]float32{3, 3}, 4}, {[]float32{3, -3}, -4}, {[]float32{4, 0.5}, 4},
	} {
		b := newBundle([]float64{lr}, &c.target)
		params := vectorOf(1, -2)
		require.True(t, b.accepts(params, vectorOf(c.gradient...), 10))
		b.step(params)
		moved := []float64{float64(params[0].Vector[0]) - 1, float64(params[0].Vector[1]) + 2}
		goal := c.target - 0.02*10
		near(t, goal, 10+dot(doubles(c.gradient), moved), 1e-5, "the tangent's loss")
		steep := []float64{float64(c.gradient[0] * c.gradient[0]), float64(c.gradient[1] * c.gradient[1])}
		mean := (steep[0] + steep[1]) / 2
		ratio := func(i int) float64 {
			return float64(c.gradient[i]) * math.Pow(steep[i]/mean+0.01, -0.375)
		}
		near(t, ratio(1)/ratio(0), moved[1]/moved[0], 1e-5, "direction")
	}
}

// A step goes to the nearest point that all tangents allow: a corner, where two bound it; the
// border of one, where the other is far away. One that is wrong at the best point is lowered until
// it is right there, and one that is too low there stays.
func TestBundleNearestPoint(t *testing.T) {
	for _, c := range []struct {
		name     string
		cuts     []halfspace
		expected []float64
	}{
		{"a corner", []halfspace{{[]float64{-1, 0}, 1}, {[]float64{0, -1}, 2}}, []float64{1, 2}},
		{"one is enough", []halfspace{{[]float64{-1, 0}, 1}, {[]float64{-1, 0}, 3}, {[]float64{0, 1}, -5}}, []float64{3, 0}},
		{"one is met on the other's border", []halfspace{{[]float64{-1, -1}, 4}, {[]float64{-1, 0}, 1}}, []float64{2, 2}},
		{"two that are nearly the same", []halfspace{{[]float64{-1, 0}, 1}, {[]float64{-1, 0.25}, 1}}, []float64{1, 0}},
		{"one that is wrong", []halfspace{{[]float64{-1, 0}, 100}, {[]float64{0, -1}, 2}}, []float64{10, 2}},
	} {
		b := &bundle{Loss: 10, target: ptr(0.0), Reach: 1, At: []float64{0, 0}, Steep: []float64{1, 1}, Cuts: c.cuts}
		x := []float64{0, 0}
		b.approach(x)
		for i := range x {
			near(t, c.expected[i], x[i], 1e-9, c.name)
		}
	}
	// in a metric in which the first number costs more: (1, 1)·(x, y) = 4 with x less than y
	b := &bundle{Loss: 4, target: ptr(0.0), Reach: 1, At: []float64{0, 0}, Steep: []float64{10, 0.1}, Cuts: []halfspace{{[]float64{-1, -1}, 4}}}
	x := []float64{0, 0}
	b.approach(x)
	near(t, 4, x[0]+x[1], 1e-9, "on the border")
	near(t, math.Pow((10/5.05+0.01)/(0.1/5.05+0.01), 0.375), x[1]/x[0], 1e-9, "metric")
}

// An evaluation that is no better ends no step: the next one is half as ambitious, until one
// has to be taken.
func TestBundleTrials(t *testing.T) {
	b := newBundle([]float64{1}, ptr(0.0))
	params := vectorOf(0)
	require.True(t, b.accepts(params, vectorOf(-1), 10))
	b.step(params)
	near(t, 10.2, float64(params[0].Vector[0]), 1e-5, "the first step has no bound")
	for n := range 12 {
		require.False(t, b.accepts(params, vectorOf(-1), 10), "as good is not better")
		b.retreat(params)
		near(t, 10.2/math.Exp2(float64(n+1)), float64(params[0].Vector[0]), 1e-5, "half as far")
	}
	require.True(t, b.accepts(params, vectorOf(-1), 11), "the run has to go on")
	require.Equal(t, 11.0, b.Loss)
	require.Equal(t, math.Exp2(-12), b.Reach)
	b.step(params)
	require.True(t, b.accepts(params, vectorOf(-1), 9))
	require.Equal(t, math.Exp2(-11), b.Reach, "twice as ambitious after a step that was good at once")
}

// A step is at most 1.5 times as long as the one before.
func TestBundleGrowth(t *testing.T) {
	b := newBundle([]float64{2}, ptr(0.0))
	require.True(t, b.accepts(vectorOf(0), vectorOf(-1), 100))
	params := vectorOf(4) // as a max_norm may shorten the first one
	require.True(t, b.accepts(params, vectorOf(-1), 99))
	b.step(params)
	require.Equal(t, float32(4+1.5*4), params[0].Vector[0])
}

// The last ten tangents are kept, and the steepness of all evaluations, those that were no better too.
func TestBundleMemory(t *testing.T) {
	b := newBundle([]float64{1}, ptr(0.0))
	steep := []float64{0, 0}
	for n := range 12 {
		b.accepts(vectorOf(float32(n), 1), vectorOf(float32(n+1), 2), 100+float64(n%2))
		steep[0] += float64((n + 1) * (n + 1))
		steep[1] += 4
	}
	require.Len(t, b.Cuts, 10)
	require.Equal(t, halfspace{[]float64{3, 2}, 100 - (3*2 + 2*1)}, b.Cuts[0])
	require.Equal(t, halfspace{[]float64{12, 2}, 101 - (12*11 + 2*1)}, b.Cuts[9])
	require.Equal(t, steep, b.Steep)
}

// A step begins ahead of the best point, by a fifth of the last one; after an evaluation that was
// no better it does not.
func TestBundleMomentum(t *testing.T) {
	b := &bundle{
		lr: []float64{1}, Loss: 1, target: ptr(0.0), Reach: 1, Radius: math.MaxFloat64,
		At: []float64{0, 0}, Move: []float64{5, 0}, Steep: []float64{1, 1}, Cuts: []halfspace{{[]float64{0, -1}, 1}},
	}
	params := vectorOf(0, 0)
	b.step(params)
	require.Equal(t, []float32{1, 1}, params[0].Vector)
	require.False(t, b.accepts(params, vectorOf(0, -1), 2))
	b.retreat(params)
	require.Zero(t, params[0].Vector[0])
}

// The goal is beyond the target by a share of the start's loss, or below what has met it; without
// a target it is below 0, or below what is less.
func TestBundleLevel(t *testing.T) {
	b := &bundle{Start: -50, Loss: 30, Reach: 1, target: ptr(20.0)}
	require.Equal(t, 20-0.02*50, b.level())
	b.Reach = 0.5
	require.Equal(t, (30+19)/2.0, b.level())
	b.Reach, b.Loss = 1, 15
	require.Equal(t, 15-0.02*50, b.level())
	b.target = nil
	require.Equal(t, -0.25*50, b.level())
	b.Loss = -15
	require.Equal(t, -15-0.25*50, b.level())
}

// Where each completion is compared with its own target, the sum of these is where to go.
func TestTotalTarget(t *testing.T) {
	s := &setup{job: &Job{Options: DefaultOptions()}, completions: []completion{{target: ptr(2.0)}, {target: ptr(0.5)}, {}}}
	require.Nil(t, s.totalTarget())
	s.job.TargetLoss = ptr(7.0)
	require.Equal(t, ptr(7.0), s.totalTarget())
	s.job.DoTargetLossSum = false
	require.Equal(t, ptr(2.5), s.totalTarget())
}

// A bowl a thousand times steeper one way than another, in parameters of two scales:
// accepted losses never rise, and a accepted losses fall, from 3720 to a millionth in fewer than a hundred evaluations.
func TestBundleOnABowl(t *testing.T) {
	steepness := []float64{1, 3, 30, 300, 1000}
	bottom := []float64{1, -2, 0.5, 3, -1}
	scales := []float64{1, 10} // of the two vectors
	params := []loader.Parameters{{Vector: make([]float32, 5)}, {Vector: make([]float32, 5)}}
	evaluate := func() (float64, []loader.Parameters) {
		loss := 0.0
		gradient := clone(params)
		for i, p := range params {
			for n, x := range p.Vector {
				apart := float64(x)/scales[i] - bottom[n]
				loss += steepness[n] * apart * apart / 2
				gradient[i].Vector[n] = float32(steepness[n] * apart / scales[i])
			}
		}
		return loss, gradient
	}
	b := newBundle([]float64{0.1, 1}, ptr(0.0))
	previous, rejected := math.Inf(1), 0
	for n := 0; previous > 1e-6; n++ {
		require.Less(t, n, 100)
		loss, gradient := evaluate()
		if !b.accepts(params, gradient, loss) {
			require.GreaterOrEqual(t, loss, previous, "a lower loss is accepted")
			rejected++
			b.retreat(params)
			continue
		}
		require.Less(t, loss, previous)
		previous = loss
		b.step(params)
	}
	require.Positive(t, rejected, "the goal is below the bottom, on purpose")
}

// On the demo job it meets a target that takes Adam 81 steps in a tenth of them; evaluations
// that end no step are not reported.
func TestBundleOnTheDemo(t *testing.T) {
	m := demoModel(t)
	job, err := ReadJob("demo", demo.Job)
	require.NoError(t, err)
	job.LR, job.MaxIters, job.TargetLoss, job.Optimizer = nil, ptr(8), ptr(165.0), optimizerBundle
	var steps []Step
	r, err := Run(context.Background(), m, job, func(s Step) { steps = append(steps, s) })
	require.NoError(t, err)
	require.Equal(t, StopTarget, r.Stop)
	require.LessOrEqual(t, r.Evaluations, 8)
	require.Len(t, steps, r.Iters+1)
	for i, s := range steps {
		require.Equal(t, i, s.Iter)
		if i > 0 {
			require.Less(t, s.Loss, steps[i-1].Loss)
		}
	}
}
