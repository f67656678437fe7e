package optimize

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// A recorded run is a whole one, with its state before each evaluation but the first, and how
// many steps had been reported by then.
type recorded struct {
	result   *Result
	steps    []Step
	states   [][]byte
	reported []int
}

func record(t *testing.T, ctx context.Context, m model, job *Job, from []byte, each func(Step)) *recorded {
	t.Helper()
	r := &recorded{}
	keep := func(encode func() ([]byte, error)) {
		state, err := encode()
		require.NoError(t, err)
		r.states, r.reported = append(r.states, state), append(r.reported, len(r.steps))
	}
	var err error
	r.result, err = runFrom(ctx, m, job, from, keep, func(s Step) {
		r.steps = append(r.steps, s)
		if each != nil {
			each(s)
		}
	})
	require.NoError(t, err)
	return r
}

// withoutTimes is a result but for the only numbers that two runs do not share.
func withoutTimes(r *Result) *Result {
	same := *r
	same.SecondsPerStep = 0
	return &same
}

// timeless is a state without its times.
func timeless(t *testing.T, state []byte) map[string]any {
	t.Helper()
	var all map[string]any
	require.NoError(t, json.Unmarshal(state, &all))
	of := all["State"].(map[string]any)
	of["Seconds"] = len(of["Seconds"].([]any))
	return all
}

// continuesTheSame ends a run before every one of its evaluations but the first, goes on from
// the state there, and expects bit for bit what the whole run reported, kept and found.
func continuesTheSame(t *testing.T, m model, job *Job) *recorded {
	t.Helper()
	whole := record(t, context.Background(), m, job, nil, nil)
	for k, state := range whole.states {
		rest := record(t, context.Background(), m, job, state, nil)
		require.Equal(t, withoutTimes(whole.result), withoutTimes(rest.result), "from state %d", k)
		require.Equal(t, whole.steps[whole.reported[k]:], rest.steps, "from state %d", k)
		require.Len(t, rest.states, len(whole.states)-k)
		if k == 0 || k == len(whole.states)/2 {
			for i := range rest.states {
				require.Equal(t, timeless(t, whole.states[k+i]), timeless(t, rest.states[i]), "state %d, from state %d", k+i, k)
			}
		}
	}
	return whole
}

// Every kind, noise, stopping rule and output-constrained stage that the specification's
// descents go through, with the noise's own draws.
func TestResumedRunsAreTheSame(t *testing.T) {
	s := readSpecification(t)
	stages := map[bool]int{}
	for _, e := range slices.Concat(s.Descents, s.Stops, s.Noise, s.Minibatch, s.OutputConstrained) {
		t.Run(e.Name, func(t *testing.T) {
			job := s.job(t, &e)
			if job.DoOutputConstr {
				// a few steps until the target is met where the specification begins
				job.MaxIters, job.MaxOutputConstrIters = ptr(1), ptr(3)
				job.TargetLoss, job.LR = nil, ptr(0.01)
				for i := range job.Examples {
					job.Examples[i].SrcTargets, job.Examples[i].DstTargets = nil, nil
				}
			}
			if job.MaxIters == nil || *job.MaxIters > 4 {
				job.MaxIters = ptr(4)
			}
			whole := continuesTheSame(t, engine{s.open[e.Model]}, job)
			stages[whole.result.OutputConstrained != nil]++
		})
	}
	require.Greater(t, stages[true], 30)
	require.Greater(t, stages[false], 70)
}

// The bundle goes on with its tangents, its metric, its bounds and, within a step, its trials.
func TestResumedBundleIsTheSame(t *testing.T) {
	s := readSpecification(t)
	rejected := 0
	for _, e := range s.Kinds {
		if e.Model != "gemma2" || e.Examples != 0 || strings.Contains(e.Name, "layer_0") || strings.Contains(e.Name, "last") || strings.Contains(e.Name, "shared") {
			continue
		}
		t.Run(e.Name, func(t *testing.T) {
			job := s.job(t, &e)
			job.Optimizer, job.LR, job.MaxIters = optimizerBundle, ptr(1.0), ptr(6)
			whole := continuesTheSame(t, engine{s.open[e.Model]}, job)
			rejected += whole.result.Evaluations - len(whole.steps)
		})
	}
	require.Greater(t, rejected, 10, "evaluations that end no step")
}

// Patience and the stall's count go on where they were: the fake's losses are those of its
// evaluations, so that a count which began anew would stop later.
func TestResumedCountsGoOn(t *testing.T) {
	for _, c := range []struct {
		name   string
		losses []float64
		change func(*Job)
		stop   Stop
	}{
		{"target", []float64{9, 3, 3.5, 3}, func(j *Job) { j.TargetLoss, j.TargetLossTargetIters = ptr(4.0), 3 }, StopTarget},
		{"stall", []float64{9, 8, 8, 8, 8}, func(j *Job) { j.Eps, j.TargetLossTargetIters = 1e-3, 3 }, StopStalled},
	} {
		t.Run(c.name, func(t *testing.T) {
			for k := range len(c.losses) - 1 {
				job, m := scripted(c.losses...)
				c.change(job)
				whole := record(t, context.Background(), m, job, nil, nil)
				require.Equal(t, c.stop, whole.result.Stop)
				// the check of the start sees the first loss, then the script goes on behind state k
				job, m = scripted(slices.Concat(c.losses[:1], c.losses[k+1:])...)
				c.change(job)
				rest := record(t, context.Background(), m, job, whole.states[k], nil)
				require.Equal(t, withoutTimes(whole.result), withoutTimes(rest.result), "from state %d", k)
			}
		})
	}
}

// What an interrupt leaves is the state before the evaluation that it fell into, in both
// stages, and an interrupted run that goes on may be interrupted again.
func TestInterruptedRunsGoOn(t *testing.T) {
	s := readSpecification(t)
	i := slices.IndexFunc(s.OutputConstrained, func(e specified) bool { return e.Name == "gemma2_constrained_melbo_add" })
	e := &s.OutputConstrained[i]
	job := s.job(t, e)
	job.LR, job.TargetLoss, job.MaxIters, job.MaxOutputConstrIters = ptr(0.01), nil, ptr(4), ptr(5)
	m := engine{s.open[e.Model]}
	whole := record(t, context.Background(), m, job, nil, nil)
	require.NotNil(t, whole.result.OutputConstrained)

	var from []byte
	done := 0
	for n := 0; ; n++ { // one evaluation at a time
		ctx, cancel := context.WithCancel(context.Background())
		reported := 0
		part := record(t, ctx, m, job, from, func(Step) {
			if reported++; reported == 1 {
				cancel()
			}
		})
		cancel()
		require.Equal(t, whole.steps[done], part.steps[0], "part %d", n)
		if part.result.Stop != StopInterrupted {
			require.Equal(t, withoutTimes(whole.result), withoutTimes(part.result))
			break
		}
		require.Less(t, n, len(whole.steps))
		from, done = part.states[len(part.states)-1], done+1
	}
	require.Greater(t, done, 8)
}

// An interrupt between the stages leaves what the first one found.
func TestInterruptBeforeTheSecondStage(t *testing.T) {
	s := readSpecification(t)
	e := &s.OutputConstrained[0]
	job := s.job(t, e)
	job.LR, job.TargetLoss, job.MaxIters, job.MaxOutputConstrIters = ptr(0.01), nil, ptr(3), ptr(5)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m := engine{s.open[e.Model]}
	part := record(t, ctx, m, job, nil, func(s Step) {
		if s.Iter == 3 {
			cancel()
		}
	})
	require.Equal(t, StopInterrupted, part.result.Stop)
	require.Equal(t, 3, part.result.Iters)
	require.Equal(t, part.steps[3].Loss, part.result.Loss)
	require.Nil(t, part.result.OutputConstrained)
	rest := record(t, context.Background(), m, job, part.states[len(part.states)-1], nil)
	require.Equal(t, withoutTimes(record(t, context.Background(), m, job, nil, nil).result), withoutTimes(rest.result))
}

// A state of another job or model is refused, and the sentence says what differs.
func TestStateOfAnotherRun(t *testing.T) {
	job := referenceCaseNamed(t, "two layers").job(t)
	job.LR, job.MaxIters = ptr(0.1), ptr(3)
	state := record(t, context.Background(), newFake(), job, nil, nil).states[0]
	for _, c := range []struct {
		expected string
		change   func(*Job, *fakeModel)
	}{
		{"had lr 0.1, and this one has 0.2", func(j *Job, _ *fakeModel) { j.LR = ptr(0.2) }},
		{"had lr 0.1, and this one has none", func(j *Job, _ *fakeModel) { j.LR = nil }},
		{"had seed 0, and this one has 7", func(j *Job, _ *fakeModel) { j.Seed = 7 }},
		{"had max_iters 3, and this one has 4", func(j *Job, _ *fakeModel) { j.MaxIters = ptr(4) }},
		{"had layer [0,1], and this one has 1", func(j *Job, _ *fakeModel) {
			j.Layers.List = []int{1}
			delete(j.Start, "0")
		}},
		{"had examples", func(j *Job, _ *fakeModel) { j.Examples[0].Prompt = "cab" }},
		{"had start", func(j *Job, _ *fakeModel) { j.Start["0"].Vector[0]++ }},
		{"had the number of tokens 5, and this one has 6", func(_ *Job, m *fakeModel) { m.Head = append(slices.Clone(m.Head), m.Head[0]) }},
		{"the same start has", func(_ *Job, m *fakeModel) {
			m.forwardHook = func(_ int, probs [][]ggmlsteer.Prob) error { probs[0][0].LogComplement *= 1 + 1e-12; return nil }
		}},
	} {
		t.Run(c.expected, func(t *testing.T) {
			again, m := referenceCaseNamed(t, "two layers").job(t), newFake()
			for key, p := range again.Start { // the reference's own stay as they are
				again.Start[key] = clone([]loader.Parameters{p})[0]
			}
			again.LR, again.MaxIters = ptr(0.1), ptr(3)
			c.change(again, m)
			_, err := runFrom(context.Background(), m, again, state, nil, nil)
			require.Contains(t, inputError(t, err).Message, c.expected)
		})
	}
}

// A state that is not whole, or whose parts do not fit, is an error that says so, whatever
// stands in it.
func TestStateThatDoesNotFit(t *testing.T) {
	s := readSpecification(t)
	i := slices.IndexFunc(s.OutputConstrained, func(e specified) bool { return e.Kind == string(loader.Affine) })
	job := s.job(t, &s.OutputConstrained[i])
	job.LR, job.TargetLoss, job.MaxIters, job.MaxOutputConstrIters = ptr(0.01), nil, ptr(1), ptr(2)
	m := engine{s.open["gemma2"]}
	whole := record(t, context.Background(), m, job, nil, nil)
	require.Len(t, whole.states, 4) // one in the first stage, before the second and in it twice

	refused := func(t *testing.T, state []byte) string {
		t.Helper()
		_, err := runFrom(context.Background(), m, job, state, nil, nil)
		return inputError(t, err).Message
	}
	require.Contains(t, refused(t, []byte("")), "no state")
	require.Contains(t, refused(t, []byte("{}")), "the interrupted run had")
	require.Contains(t, refused(t, []byte("null")), "the interrupted run had")
	require.Contains(t, refused(t, []byte("[]")), "no state")
	for _, n := range []int{1, 100, len(whole.states[0]) - 1} {
		require.Contains(t, refused(t, whole.states[0][:n]), "no state")
	}
	// every list of the state, wherever it is, shortened by one or emptied, and every object gone
	for k, state := range whole.states {
		var all map[string]any
		require.NoError(t, json.Unmarshal(state, &all))
		// what a run only hands on, what its stage no longer reads, and what it has not begun
		unread := func(path string) bool {
			return strings.Contains(path, "Losses") || path == ".Stopping" || path == ".Seconds" || path == ".Shrinking" ||
				k > 0 && strings.HasPrefix(path, ".Optimizer") || k == 1 && path == ".Shrinking.Steps"
		}
		places := 0
		var visit func(set func(any), value any, path string)
		visit = func(set func(any), value any, path string) {
			try := func(other any) {
				set(other)
				damaged, err := json.Marshal(all)
				set(value)
				require.NoError(t, err)
				_, err = runFrom(context.Background(), m, job, damaged, nil, nil) // and no panic
				var input *loader.InputError
				if !unread(path) {
					require.Error(t, err, "state %d, %s", k, path)
					require.True(t, errors.As(err, &input), "state %d, %s: %v", k, path, err)
				}
				places++
			}
			switch v := value.(type) {
			case []any:
				if len(v) > 0 {
					try(v[:len(v)-1])
					if _, isNumber := v[0].(float64); !isNumber {
						visit(func(x any) { v[0] = x }, v[0], path+"[0]")
					}
				}
			case map[string]any:
				try(nil)
				for key, inner := range v {
					visit(func(x any) { v[key] = x }, inner, path+"."+key)
				}
			}
		}
		for key, value := range all["State"].(map[string]any) {
			visit(func(x any) { all["State"].(map[string]any)[key] = x }, value, "."+key)
		}
		require.Greater(t, places, 20)
	}
}
