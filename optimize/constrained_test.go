package optimize

import (
	"context"
	"math"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// shrinkable is a job on the fake model whose stage has room: the losses may rise by eps.
func shrinkable() *Job {
	job := &Job{Options: DefaultOptions(), Layers: Layers{List: []int{1}}, Examples: []Example{{Prompt: "ca", Src: []string{"bd"}, Dst: []string{"d"}}}}
	job.Start = map[string]loader.Parameters{"1": {Vector: []float32{-1, 0.75, 0.5}}}
	job.LR, job.MaxIters, job.Eps, job.TargetLoss = ptr(0.05), ptr(5), 0.5, ptr(50.0)
	job.DoOutputConstr, job.MaxOutputConstrIters = true, ptr(60)
	return job
}

// The stage comes after the target was met, or where there is none.
func TestStageOnlyAfterTheTarget(t *testing.T) {
	for _, c := range []struct {
		name   string
		losses []float64
		change func(*Job)
		stop   Stop
		stage  bool
	}{
		{"met", []float64{9, 4, 4}, func(j *Job) { j.TargetLoss = ptr(4.0) }, StopTarget, true},
		{"not met", []float64{9, 8}, func(j *Job) { j.TargetLoss, j.MaxIters = ptr(4.0), ptr(1) }, StopMaxIters, false},
		{"own targets, not met", []float64{9, 8}, func(j *Job) {
			j.DoTargetLossSum, j.Examples[0].DstTargets, j.MaxIters = false, []float64{1, 1}, ptr(1)
		}, StopMaxIters, false},
		{"none", []float64{9, 8, 8}, func(j *Job) { j.MaxIters = ptr(1) }, StopMaxIters, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			job, m := scripted(c.losses...)
			job.DoOutputConstr, job.MaxOutputConstrIters = true, ptr(0)
			c.change(job)
			n := 0 // evaluations of both stages, each of which has a session of its own
			script := m.forwardHook
			m.forwardHook = func(_ int, probs [][]ggmlsteer.Prob) error { n++; return script(n-1, probs) }
			r, err := run(context.Background(), m, job, nil)
			require.NoError(t, err)
			require.Equal(t, c.stop, r.Stop)
			require.Equal(t, c.stage, r.OutputConstrained != nil)
			require.Equal(t, len(c.losses), n)
		})
	}
}

// The report has norm and losses of the vector that entered and of the one that is returned.
func TestStageReport(t *testing.T) {
	var entered, last Step
	r, err := run(context.Background(), newFake(), shrinkable(), func(s Step) {
		if last = s; s.Stage == 0 {
			entered = s
		}
	})
	require.NoError(t, err)
	o := r.OutputConstrained
	require.Equal(t, entered.Layers[0].Norm, o.NormBefore)
	require.Equal(t, entered.Losses, o.LossesBefore)
	require.Equal(t, norm(r.Steering.Params[0].Vector), o.NormAfter)
	require.Equal(t, r.Losses, o.LossesAfter)
	require.Equal(t, last.Losses, o.LossesAfter)
	require.Less(t, o.NormAfter, 0.9*o.NormBefore)
	require.NotEqual(t, o.LossesBefore, o.LossesAfter)
}

// The stage has the losses of all prompts, and without noise.
func TestStageIsOfTheWholeJob(t *testing.T) {
	job := shrinkable()
	job.Examples, job.Prompts, job.Dst, job.MinibatchSize = nil, []string{"ca", "b", "ac"}, []string{"d"}, 2
	r, err := run(context.Background(), newFake(), job, nil)
	require.NoError(t, err)
	require.Len(t, r.OutputConstrained.LossesBefore, 3)

	s := readSpecification(t)
	e := &s.OutputConstrained[0]
	before := func(change func(*Job)) []float64 {
		job := s.job(t, e)
		job.LR, job.MaxIters, job.TargetLoss, job.MaxOutputConstrIters = ptr(0.01), ptr(0), nil, ptr(0)
		change(job)
		r, err := run(context.Background(), engine{s.open[e.Model]}, job, nil)
		require.NoError(t, err)
		return flatLosses(r.OutputConstrained.LossesBefore)
	}
	plain := before(func(*Job) {})
	noisy := before(func(j *Job) { j.NoiseScale, j.DoTangentSpaceNoise = ptr(1.0), false })
	for i := range plain {
		near(t, plain[i], noisy[i], caseLossTolerance, "loss")
	}
}

// The stage's learning rate: output_constr_lr, or else lr, of an automatic one a fifth.
func TestStageRates(t *testing.T) {
	for _, c := range []struct {
		change   func(*Job)
		expected float64 // of layer 0 and, twice as large where lr is automatic, of layer 1
		twice    float64
	}{
		{func(j *Job) { j.OutputConstrLR = ptr(0.3) }, 0.3, 0.3},
		{func(j *Job) {}, 0.05, 0.05},
		{func(j *Job) { j.LR = nil }, 0.2 * 0.01 * 10 / math.Sqrt(3), 0.2 * 0.01 * 20 / math.Sqrt(3)},
		{func(j *Job) { j.LR, j.OutputConstrLR = nil, ptr(0.3) }, 0.3, 0.3},
	} {
		job := shrinkable()
		job.Layers.List = []int{0, 1}
		c.change(job)
		s, err := newSetup(context.Background(), newFake(), job)
		require.NoError(t, err)
		rates := (&constrained{descent: s.descent(nil, nil), shrinking: &shrinking{}}).rates()
		near(t, c.expected, rates[0], 1e-15, "layer 0")
		near(t, c.twice, rates[1], 1e-15, "layer 1")
	}
}

// An alongFirst makes a vector's first component large.
type alongFirst struct{}

func (alongFirst) Observed() *int { return nil }

func (alongFirst) Evaluate(at Point) (value float64, byParams []loader.Parameters, _ [][][]float32) {
	for _, p := range at.Params {
		value -= float64(p.Vector[0])
		slope := make([]float32, len(p.Vector))
		slope[0] = -1
		byParams = append(byParams, loader.Parameters{Vector: slope})
	}
	return value, byParams, nil
}

// Another objective than the norm may not be had by a larger norm: from −1 the first component could
// go to 4 in these steps.
func TestOwnObjective(t *testing.T) {
	job := shrinkable()
	job.MaxIters, job.Eps, job.OutputObjective, job.OutputConstrLR, job.MaxOutputConstrIters = ptr(0), 2, alongFirst{}, ptr(0.05), ptr(100)
	r, err := run(context.Background(), newFake(), job, func(s Step) {
		if s.Stage == 2 && s.Iter == 0 { // all constraints are at their limits, with multipliers of 0
			nearVector(t, []float64{-1, 0, 0}, s.Layers[0].Gradient.Vector, 1e-6)
		}
	})
	require.NoError(t, err)
	require.Greater(t, r.Steering.Params[0].Vector[0], float32(-0.75), "from −1")
	require.LessOrEqual(t, r.OutputConstrained.NormAfter, r.OutputConstrained.NormBefore)
}

// What the stage descends in by parameters and slacks, and ascends in by multipliers, has the slopes
// of f + scale·Σ (λ h + h²/2), with h = m − g − s².
func TestLagrangian(t *testing.T) {
	for name, own := range map[string]OutputObjective{"norm": nil, "own, with the limit of the norm": alongFirst{}} {
		t.Run(name, func(t *testing.T) {
			job := shrinkable()
			job.Layers.List, job.OutputObjective = []int{0, 1}, own
			job.Start["0"] = loader.Parameters{Vector: []float32{0.5, 1, -0.25}}
			s, err := newSetup(context.Background(), newFake(), job)
			require.NoError(t, err)
			c := &constrained{descent: s.descent(nil, nil), shrinking: &shrinking{}}
			ctx := context.Background()
			require.NoError(t, c.open(ctx))
			entered, err := c.try(ctx, c.Params)
			require.NoError(t, err)
			c.constrain(entered)
			c.Factor = 3
			for i := range c.Limits {
				c.Slacks[i], c.Multipliers[i] = 0.5+0.25*float64(i), 1.5-float64(i)
			}
			params := clone(c.Params)
			value := func() float64 {
				at, err := c.try(ctx, params)
				require.NoError(t, err)
				sum := at.value
				for i, gap := range c.gaps(at) {
					h := gap - c.Slacks[i]*c.Slacks[i]
					sum += c.Factor * (c.Multipliers[i]*h + h*h/2)
				}
				return sum
			}
			slope := func(move func(by float64)) float64 {
				at := func(by float64) float64 {
					move(by)
					defer move(-by)
					return value()
				}
				return (8*(at(step)-at(-step)) - (at(2*step) - at(-2*step))) / (12 * step)
			}
			at, err := c.try(ctx, params)
			require.NoError(t, err)
			at.gaps = c.gaps(at)
			gradient, bySlack, byMultiplier, err := c.differentiate(ctx, at)
			require.NoError(t, err)
			for i := range c.Limits {
				near(t, slope(func(by float64) { c.Slacks[i] += by }), bySlack[i], differenceTolerance, "slack")
				near(t, slope(func(by float64) { c.Multipliers[i] += by }), byMultiplier[i], differenceTolerance, "multiplier")
			}
			for k := range params {
				expected := make([]float64, 3)
				for n := range expected {
					expected[n] = slope(func(by float64) { params[k].Vector[n] += float32(by) })
				}
				nearVector(t, expected, gradient[k].Vector, differenceTolerance)
			}
		})
	}
}
