package optimize

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// A Keep is called before every evaluation but the first, and again when the end of ctx
// interrupts one. encode gives the state of the run, with which RunFrom goes on there; it is
// for use during the call.
type Keep func(encode func() ([]byte, error))

// RunFrom is Run from the state of a run that ended early; nil is the start. What it finds is
// bit for bit what that run would have found, its times excepted. keep may be nil.
//
// It is an *InputError if the state is that of another job or model, or if the losses at the
// start are not the very same, because weights, precision, processor or program are others. A job's
// OutputObjective is the caller's to keep.
func RunFrom(ctx context.Context, m *ggmlsteer.Model, job *Job, state []byte, keep Keep, progress func(Step)) (*Result, error) {
	return runFrom(ctx, engine{m}, job, state, keep, progress)
}

// A state is what the rest of a run depends on, beside job and model. Noise is not in it:
// draws depend on the seed and on what they are for. It is kept as JSON, whose numbers read
// back to the same bits.
type state struct {
	Params    []loader.Parameters // of the next evaluation
	Iter      int                 // steps before it; in the output-constrained stage, steps of that
	Optimizer optimizer
	Stopping  stopping
	First     *first     // the first evaluation; nil before it
	Best      *Step      // the evaluation with the lowest loss
	Seconds   []float64  // of each evaluation
	Shrinking *shrinking // nil: the output-constrained stage has not begun
}

// A first is what a run found at its start.
type first struct {
	Loss   float64
	Losses Losses
}

// A savedRun is a state with what it belongs to.
type savedRun struct {
	Job   json.RawMessage // as recipe has it
	Model savedModel
	State *state
}

type savedModel struct {
	Name, Arch, Quantization string
	Embd, Layers, Vocab      int
}

func (s *setup) savedModel() savedModel {
	info := s.model.Info()
	return savedModel{info.Name, info.Arch, info.Quantization, info.Embd, info.Layers, info.Vocab}
}

// kept offers the state to whoever keeps it.
func (d *descent) kept() {
	if d.keep != nil && d.First != nil {
		d.keep(d.encode)
	}
}

func (d *descent) encode() ([]byte, error) {
	recipe, err := d.job.recipe()
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(savedRun{json.RawMessage(recipe), d.savedModel(), &d.state})
	if err != nil {
		return nil, fmt.Errorf("the state of the run cannot be written: %w", err)
	}
	return data, nil
}

// goOn puts a descent that has not begun where the state says.
func (d *descent) goOn(ctx context.Context, data []byte) error {
	start := d.Params
	saved := savedRun{State: &d.state}
	d.Params = nil
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&saved); err != nil {
		return &loader.InputError{Message: fmt.Sprintf("this is no state of a run: %v", err)}
	}
	if err := d.sameRun(&saved); err != nil {
		return err
	}
	if what := d.unfit(saved.State, start); what != "" {
		return &loader.InputError{Message: "the state contradicts its own job: " + what}
	}
	now, err := d.objective.evaluate(ctx, start, 0)
	if err != nil {
		return err
	}
	if now.loss != d.First.Loss || !reflect.DeepEqual(now.losses, d.First.Losses) {
		return &loader.InputError{
			Message: fmt.Sprintf("the interrupted run began with a loss of %v, and here the same start has %v", d.First.Loss, now.loss),
			Hint:    "weights, precision, processor or program are not the same; begin anew, or from the steering that it left, with --start",
		}
	}
	return nil
}

// sameRun refuses a state of another job or model, and says what differs.
func (d *descent) sameRun(saved *savedRun) error {
	differs := func(what, then, now string) error {
		return &loader.InputError{
			Message: fmt.Sprintf("the interrupted run had %s %s, and this one has %s", what, then, now),
			Hint:    "a run goes on with the same job and model only",
		}
	}
	then, now := reflect.ValueOf(saved.Model), reflect.ValueOf(d.savedModel())
	for i := range now.NumField() {
		if !then.Field(i).Equal(now.Field(i)) {
			names := []string{"a model of the name", "the architecture", "the quantization", "the width", "the number of layers", "the number of tokens"}
			return differs(names[i], fmt.Sprintf("%v", then.Field(i)), fmt.Sprintf("%v", now.Field(i)))
		}
	}
	recipe, err := d.job.recipe()
	if err != nil {
		return err
	}
	var jobThen, jobNow map[string]any
	if err := json.Unmarshal([]byte(recipe), &jobNow); err != nil {
		return err
	}
	if err := json.Unmarshal(saved.Job, &jobThen); err != nil {
		return &loader.InputError{Message: fmt.Sprintf("this is no state of a run: its job is not readable: %v", err)}
	}
	both := maps.Clone(jobNow)
	maps.Copy(both, jobThen)
	for _, key := range slices.Sorted(maps.Keys(both)) {
		if a, b := jobThen[key], jobNow[key]; !reflect.DeepEqual(a, b) {
			return differs(key, brief(a), brief(b))
		}
	}
	return nil
}

// brief is the beginning of a job's value, for an error message.
func brief(value any) string {
	if value == nil {
		return "none"
	}
	text, err := json.Marshal(value)
	if err != nil { // it was read from JSON
		return fmt.Sprint(value)
	}
	return shorten(string(text))
}

// unfit says what of a state does not have the shape of the parameters that a run starts
// with, or "".
func (d *descent) unfit(s *state, start []loader.Parameters) string {
	var widths []int
	for _, p := range start {
		for _, row := range rows(p) {
			widths = append(widths, len(row))
		}
	}
	isStep := func(step *Step) bool {
		return step != nil && slices.EqualFunc(step.Layers, d.keys, func(l LayerStep, key string) bool { return l.Layer == key }) &&
			alike(step.params(), start) && alike(step.gradient(), start)
	}
	constraints := len(d.objective.all)
	if limitsNorm(d.job.outputObjective()) {
		constraints++
	}
	switch second := s.Shrinking; {
	case !alike(s.Params, start):
		return "its parameters have another shape"
	case s.First == nil || !isStep(s.Best) || len(s.Seconds) == 0:
		return "it has no evaluation"
	case s.Iter < 0 || second == nil && s.Iter == 0:
		return fmt.Sprintf("it has made %d steps", s.Iter)
	case second == nil:
		if s.Optimizer == nil || !s.Optimizer.fits(widths) {
			return "its optimizer has another shape"
		}
	case !d.job.DoOutputConstr || !isStep(second.Entered):
		return "nothing entered its output-constrained stage"
	case s.Iter == 0:
	case !isStep(second.Best):
		return "its output-constrained stage has no evaluation"
	case len(second.Limits) != constraints || len(second.Slacks) != constraints || len(second.Multipliers) != constraints:
		return fmt.Sprintf("expected %d constraints, found %d", constraints, len(second.Limits))
	case !second.Steps.fits(append(widths, constraints, constraints)):
		return "its output-constrained stage has another shape"
	}
	return ""
}

// alike says whether parameters have the same shape.
func alike(a, b []loader.Parameters) bool {
	return slices.EqualFunc(a, b, func(p, q loader.Parameters) bool {
		return len(p.Left) == len(q.Left) && slices.EqualFunc(rows(p), rows(q), func(x, y []float32) bool { return len(x) == len(y) })
	})
}
