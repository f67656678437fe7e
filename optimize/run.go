package optimize

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// Run finds the steering that a job asks for on a model, in its Precision F32.
//
// progress, if not nil, is called after every evaluation: n optimizer steps give n + 1
// calls, and the last describes the result unless the run is interrupted. The end
// of ctx interrupts it: the result is then what was evaluated with the lowest total loss,
// with Stop StopInterrupted, or the cause of ctx if nothing was.
//
// What the user can mend is an *InputError; a loss or gradient that is not finite
// is another error, which says whose and when.
func Run(ctx context.Context, m *ggmlsteer.Model, job *Job, progress func(Step)) (*Result, error) {
	return run(ctx, engine{m}, job, progress)
}

// A model is what a run needs of a *ggmlsteer.Model.
type model interface {
	Info() ggmlsteer.Info
	Tokenize(text string, parseSpecial bool) ([]ggmlsteer.Token, error)
	Chat(system, user string) ([]ggmlsteer.Token, error)
	ChatCompletion(system, user, completion string) ([]ggmlsteer.Token, error)
	Differentiable(layers []int) error
	StreamNorms(ctx context.Context, texts [][]ggmlsteer.Token, layers []int) ([][][]float64, error)
	newSession(o ggmlsteer.SessionOptions, seqs []ggmlsteer.Sequence) (evaluator, error)
}

type engine struct{ *ggmlsteer.Model }

func (e engine) newSession(o ggmlsteer.SessionOptions, seqs []ggmlsteer.Sequence) (evaluator, error) {
	s, err := e.NewSession(o, seqs)
	if err != nil {
		return nil, err // and not a session that is nil
	}
	return s, nil
}

func run(ctx context.Context, m model, job *Job, progress func(Step)) (*Result, error) {
	s, err := newSetup(m, job)
	if err != nil {
		return nil, err
	}
	lr, err := s.learningRates(ctx)
	if err != nil {
		return nil, err
	}
	objective, err := s.objective()
	if err != nil {
		return nil, err
	}
	defer objective.session.Close()
	d := &descent{objective: objective, keys: s.keys, params: s.params, adam: newAdam(lr), progress: progress}
	result, err := d.run(ctx)
	if err != nil {
		return nil, err
	}
	result.LR = map[string]float64{}
	for i, key := range s.keys {
		result.LR[key] = lr[i]
	}
	result.TokensPerStep = objective.session.BatchTokens()
	info := m.Info()
	steering := result.Steering
	steering.Arch, steering.Embd, steering.Model = info.Arch, info.Embd, info.Name
	steering.Recipe, err = job.asUsed(lr).recipe()
	return result, err
}

// A setup is a job on a model, all that can be refused before the first
// computation checked.
type setup struct {
	model       model
	job         *Job
	layers      []int
	keys        []string            // of the parameters: "10", or "shared"
	params      []loader.Parameters // to start from, parallel to keys
	completions []completion
}

func newSetup(m model, job *Job) (*setup, error) {
	s := &setup{model: m, job: job}
	err := job.Validate()
	if err != nil {
		return nil, err
	}
	info := m.Info()
	if s.layers, err = job.Layers.Resolve(info.Layers); err != nil {
		return nil, err
	}
	if err := m.Differentiable(s.layers); err != nil {
		return nil, err
	}
	s.keys = job.layerKeys(s.layers)
	if s.params, err = job.startAt(s.layers, info.Embd); err != nil {
		return nil, err
	}
	s.completions, err = job.completions(m)
	return s, err
}

// objective opens a session, which is the caller's to close.
func (s *setup) objective() (*objective, error) {
	sequences := make([]ggmlsteer.Sequence, len(s.completions))
	for i, c := range s.completions {
		sequences[i] = c.sequence
	}
	session, err := s.model.newSession(ggmlsteer.SessionOptions{Layers: s.layers, Vectors: 1, Coldness: s.job.Coldness}, sequences)
	if err != nil {
		return nil, err
	}
	return &objective{job: s.job, layers: s.layers, completions: s.completions, session: session}, nil
}

// asUsed is the job with what it leaves to be chosen as it was chosen. Layers
// with learning rates of their own have no number to write.
func (j *Job) asUsed(lr []float64) *Job {
	used := *j
	norm := j.startingNorm()
	used.StartingNorm = &norm
	if len(lr) == 1 {
		used.LR = &lr[0]
	}
	return &used
}

// A descent is the loop of section 4 of docs/steering.md: evaluate, look whether to stop, step.
type descent struct {
	objective *objective
	keys      []string // of the parameters: "10", or "shared"
	params    []loader.Parameters
	adam      *adam
	progress  func(Step)
}

func (d *descent) run(ctx context.Context) (*Result, error) {
	stop := stopping{job: d.objective.job, completions: d.objective.completions}
	var best, last *Step
	var seconds []float64
	for {
		began := time.Now()
		step, err := d.evaluate(ctx)
		if err != nil {
			if ctx.Err() != nil && best != nil {
				return d.result(best, last.Iter, StopInterrupted, seconds), nil
			}
			return nil, err
		}
		seconds = append(seconds, time.Since(began).Seconds())
		if d.progress != nil {
			d.progress(*step)
		}
		last = step
		if best == nil || step.Loss < best.Loss {
			best = step
		}
		if reason := stop.reason(step); reason != "" {
			return d.result(step, step.Iter, reason, seconds), nil
		}
		d.step(step)
	}
}

// evaluate is the objective at the current parameters.
func (d *descent) evaluate(ctx context.Context) (*Step, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	e, err := d.objective.evaluate(ctx, d.params)
	var diverged *notFinite
	if errors.As(err, &diverged) {
		remedy := "another start or an eps above 0 may help"
		if d.adam.steps > 0 {
			remedy = fmt.Sprintf("a smaller lr than %v, a max_norm or an eps above 0 may help", slices.Max(d.adam.lr))
		}
		return nil, fmt.Errorf("after %d steps %s; %s", d.adam.steps, diverged.what, remedy)
	}
	if err != nil {
		return nil, err
	}
	step := &Step{Iter: d.adam.steps, Loss: e.loss, Losses: e.losses, Layers: make([]LayerStep, len(d.params))}
	for i, p := range d.params {
		step.Layers[i] = LayerStep{
			Layer: d.keys[i], Params: p, Gradient: e.gradient[i],
			Norm: norm(p.Vector), GradientNorm: norm(e.gradient[i].Vector),
		}
	}
	return step, nil
}

// step moves on from an evaluation, whose parameters stay as they are.
func (d *descent) step(from *Step) {
	d.params = clone(d.params)
	gradient := make([]loader.Parameters, len(from.Layers))
	for i, l := range from.Layers {
		gradient[i] = l.Gradient
	}
	d.adam.step(d.params, gradient)
	if most := d.objective.job.MaxNorm; most != nil {
		for _, p := range d.params {
			limit(p.Vector, *most)
		}
	}
}

func (d *descent) result(step *Step, iters int, stop Stop, seconds []float64) *Result {
	job := d.objective.job
	r := &Result{
		Steering: &loader.Steering{
			Kind: loader.Add, Layers: d.objective.layers, Shared: job.Shared, PromptOnly: job.OnlyHookPrompt,
		},
		Iters: iters, Stop: stop, Loss: step.Loss, Losses: step.Losses,
		Norms:          map[string]float64{},
		SecondsPerStep: median(seconds),
	}
	for _, l := range step.Layers {
		r.Steering.Params = append(r.Steering.Params, l.Params)
		r.Norms[l.Layer] = l.Norm
	}
	return r
}

// A stopping tells when a run ends. It is asked once after each evaluation.
type stopping struct {
	job         *Job
	completions []completion
	met, still  int     // evaluations in a row that met the target, that hardly changed the loss
	previous    float64 // loss
}

// reason is "" if the run goes on.
func (s *stopping) reason(step *Step) Stop {
	patience := s.job.TargetLossTargetIters
	s.met++
	if !s.meets(step) {
		s.met = 0
	}
	s.still++
	if step.Iter == 0 || !(math.Abs(step.Loss-s.previous) < s.job.Eps) {
		s.still = 0
	}
	s.previous = step.Loss
	switch {
	case s.met >= patience:
		return StopTarget
	case s.still >= patience:
		return StopStalled
	case s.job.MaxIters != nil && step.Iter >= *s.job.MaxIters:
		return StopMaxIters
	}
	return ""
}

// meets says whether the total loss is at its target, or each completion that
// has a target at its own.
func (s *stopping) meets(step *Step) bool {
	if s.job.DoTargetLossSum {
		return s.job.TargetLoss != nil && step.Loss <= *s.job.TargetLoss
	}
	targets := 0
	for _, c := range s.completions {
		if c.target == nil {
			continue
		}
		targets++
		if !(step.Losses[c.example][c.side][c.index] <= *c.target) {
			return false
		}
	}
	return targets > 0
}

// learningRates are those of each layer's parameters: the job's, or 1 % of the
// median norm of the unsteered residual stream at that layer, over √width (docs/steering.md,
// section 5); the smallest one if the layers share their parameters.
func (s *setup) learningRates(ctx context.Context) ([]float64, error) {
	if s.job.LR != nil {
		return slices.Repeat([]float64{*s.job.LR}, len(s.keys)), nil
	}
	norms, err := s.streamNorms(ctx)
	if err != nil {
		return nil, err
	}
	const share = 0.01
	rates := make([]float64, len(s.layers))
	for l, layer := range s.layers {
		rates[l] = share * norms[l] / math.Sqrt(float64(s.model.Info().Embd))
		if !above0.holds(rates[l]) {
			return nil, &loader.InputError{
				Message: fmt.Sprintf("lr: it cannot be chosen from the residual stream at layer %d, whose median norm is %v", layer, norms[l]),
				Hint:    "give a number",
			}
		}
	}
	if s.job.Shared {
		return []float64{slices.Min(rates)}, nil
	}
	return rates, nil
}

// streamNorms are the median norms of the unsteered residual stream, layer by
// layer: over all tokens of all examples, those of a prompt once, without BOS.
func (s *setup) streamNorms(ctx context.Context) ([]float64, error) {
	texts := make([][]ggmlsteer.Token, len(s.completions))
	for i, c := range s.completions {
		texts[i] = c.sequence.Tokens
	}
	norms, err := s.model.StreamNorms(ctx, texts, s.layers)
	if err != nil {
		return nil, err
	}
	medians := make([]float64, len(s.layers))
	for l := range s.layers {
		var all []float64
		for i, c := range s.completions {
			from := 1 // without BOS, whose norm is many times that of the others
			if i > 0 && s.completions[i-1].example == c.example {
				from = c.sequence.Prompt // the prompt was counted
			}
			all = append(all, norms[l][i][from:]...)
		}
		medians[l] = median(all)
	}
	return medians, nil
}

// median is the middle value, or the mean of the two in the middle.
func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	n := len(x)
	return (x[(n-1)/2] + x[n/2]) / 2
}
