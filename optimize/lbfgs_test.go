package optimize

import (
	"context"
	"math"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
)

// A bowl a thousand times steeper one way than another, in parameters of two scales:
// accepted losses never rise, and the bottom is reached in a few dozen evaluations.
func TestLBFGSOnABowl(t *testing.T) {
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
	b := newLBFGS([]float64{0.1, 1})
	previous, rejected := math.Inf(1), 0
	for range 60 {
		loss, gradient := evaluate()
		if !b.accepts(params, gradient, loss) {
			require.Greater(t, loss, previous, "a lower loss is accepted")
			rejected++
			b.retreat(params)
			continue
		}
		require.LessOrEqual(t, loss, previous)
		previous = loss
		b.step(params)
	}
	require.LessOrEqual(t, previous, 1e-8)
	require.Positive(t, rejected, "the first step is too long here, on purpose")
}

// On the demo job it meets a target that takes Adam 81 evaluations in less than a
// quarter of them; rejected ones are no steps, and are not reported.
func TestLBFGSOnTheDemo(t *testing.T) {
	m := demoModel(t)
	job, err := ReadJob("demo", demo.Job)
	require.NoError(t, err)
	job.LR, job.MaxIters, job.TargetLoss, job.Optimizer = nil, ptr(20), ptr(165.0), optimizerLBFGS
	var steps []Step
	r, err := Run(context.Background(), m, job, func(s Step) { steps = append(steps, s) })
	require.NoError(t, err)
	require.Equal(t, StopTarget, r.Stop)
	require.Len(t, steps, r.Iters+1)
	for i, s := range steps {
		require.Equal(t, i, s.Iter)
		if i > 0 {
			require.Less(t, s.Loss, steps[i-1].Loss)
		}
	}
}
