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
	s, err := newSetup(ctx, m, job)
	if err != nil {
		return nil, err
	}
	objective := s.objective()
	defer objective.close()
	d := &descent{setup: s, objective: objective, params: s.params, optimizer: job.newOptimizer(s.scales.lr), progress: progress}
	result, err := d.run(ctx)
	if err != nil {
		return nil, err
	}
	result.LR = map[string]float64{}
	for i, key := range s.keys {
		result.LR[key] = s.scales.lr[i]
	}
	info := m.Info()
	steering := result.Steering
	steering.Arch, steering.Embd, steering.Model = info.Arch, info.Embd, info.Name
	steering.Recipe, err = s.asUsed().recipe()
	return result, err
}

// A setup is a job on a model, all that can be refused before the first
// step checked.
type setup struct {
	model       model
	job         *Job
	layers      []int
	keys        []string // of the parameters: "10", or "shared"
	completions []completion
	scales      *scales             // parallel to keys
	params      []loader.Parameters // to start from, parallel to keys
}

func newSetup(ctx context.Context, m model, job *Job) (*setup, error) {
	s := &setup{model: m, job: job}
	err := job.Validate()
	if err != nil {
		return nil, err
	}
	info := m.Info()
	if s.layers, err = job.Layers.Resolve(info.Layers); err != nil {
		return nil, err
	}
	if err := job.checkMelbo(s.layers, info.Layers); err != nil {
		return nil, err
	}
	if err := m.Differentiable(s.layers); err != nil {
		return nil, err
	}
	s.keys = job.layerKeys(s.layers)
	if err := job.checkStart(s.layers, info.Embd); err != nil {
		return nil, err
	}
	if s.completions, err = job.completions(m); err != nil {
		return nil, err
	}
	if s.scales, err = job.scales(ctx, m, s.layers, s.completions); err != nil {
		return nil, err
	}
	s.params, err = job.startAt(s.layers, info.Embd, s.scales.startingNorms)
	return s, err
}

// objective is the job's, to be closed by the caller.
func (s *setup) objective() *objective {
	o := &objective{job: s.job, model: s.model, layers: s.layers, units: s.scales.units, all: s.completions}
	if s.job.NoiseScale != nil {
		o.noise = &noise{job: s.job, draw: seeded(s.job.Seed)}
	}
	return o
}

// asUsed is the job with what it leaves to be chosen as it was chosen. Layers
// with numbers of their own have none to write.
func (s *setup) asUsed() *Job {
	used := *s.job
	if s.job.DoRelativeScale {
		return &used
	}
	if same(s.scales.lr) && used.LR == nil {
		used.LR = &s.scales.lr[0]
	}
	if same(s.scales.startingNorms) {
		used.StartingNorm = &s.scales.startingNorms[0]
	}
	if used.AffineRank != nil {
		norm := s.job.startingAffineNorm()
		used.StartingAffineNorm = &norm
	}
	return &used
}

func same(x []float64) bool {
	return !slices.ContainsFunc(x, func(other float64) bool { return other != x[0] })
}

// A descent is the loop of section 4 of docs/steering.md: evaluate, look whether to stop, step.
type descent struct {
	*setup
	objective *objective
	params    []loader.Parameters // of the next evaluation
	iter      int                 // steps before it
	optimizer optimizer
	progress  func(Step)
	seconds   []float64 // of each step
}

func (d *descent) run(ctx context.Context) (*Result, error) {
	stop := stopping{job: d.job}
	var best, last *Step
	for {
		began := time.Now()
		step, err := d.evaluate(ctx)
		if err != nil {
			if ctx.Err() != nil && best != nil {
				return d.result(best, last.Iter, StopInterrupted), nil
			}
			return nil, err
		}
		d.seconds = append(d.seconds, time.Since(began).Seconds())
		if !d.optimizer.accepts(d.params, step.gradient(), step.Loss) {
			d.params = clone(d.params)
			d.optimizer.retreat(d.params)
			d.limit(d.params)
			continue
		}
		d.report(step)
		last = step
		if best == nil || step.Loss < best.Loss {
			best = step
		}
		if reason := stop.reason(step, d.objective.completions); reason != "" {
			return d.finish(ctx, step, reason)
		}
		d.step()
	}
}

// finish is the result of a descent that ended by itself, after the output-constrained
// stage if there is one: without a target, or once it is met.
func (d *descent) finish(ctx context.Context, last *Step, stop Stop) (*Result, error) {
	if !d.job.DoOutputConstr || stop != StopTarget && d.job.hasTargets() {
		return d.result(last, last.Iter, stop), nil
	}
	// the tokens of a step are the first stage's
	r := d.result(last, last.Iter, stop)
	c := &constrained{descent: d}
	kept, summary, err := c.run(ctx)
	if err != nil {
		return nil, err
	}
	after := d.result(kept, last.Iter, stop)
	if ctx.Err() != nil {
		after.Stop = StopInterrupted
	}
	after.SecondsPerStep, after.TokensPerStep, after.OutputConstrained = r.SecondsPerStep, r.TokensPerStep, summary
	return after, nil
}

// hasTargets says whether any completion has a target.
func (j *Job) hasTargets() bool {
	return j.TargetLoss != nil || slices.ContainsFunc(j.examples(), func(e *Example) bool { return e.SrcTargets != nil || e.DstTargets != nil })
}

func (d *descent) report(step *Step) {
	if d.progress != nil {
		d.progress(*step)
	}
}

// evaluate is the objective at the current parameters.
func (d *descent) evaluate(ctx context.Context) (*Step, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	e, err := d.objective.evaluate(ctx, d.params, d.iter)
	if err != nil {
		return nil, d.explain(err)
	}
	return d.stepOf(d.iter, d.params, e), nil
}

// explain says when a loss or gradient was not finite, and what may help.
func (d *descent) explain(err error) error {
	var diverged *notFinite
	if !errors.As(err, &diverged) {
		return err
	}
	remedy := "another start or an eps above 0 may help"
	if d.iter > 0 {
		remedy = fmt.Sprintf("a smaller lr than %v, a max_norm or an eps above 0 may help", slices.Max(d.scales.lr))
	}
	return fmt.Errorf("after %d steps %s; %s", d.iter, diverged.what, remedy)
}

func (d *descent) stepOf(iter int, params []loader.Parameters, e *evaluation) *Step {
	step := &Step{Iter: iter, Loss: e.loss, Losses: e.losses, Layers: make([]LayerStep, len(params))}
	for i, p := range params {
		step.Layers[i] = LayerStep{
			Layer: d.keys[i], Params: p, Gradient: e.gradient[i],
			Norm: norm(p.Vector), GradientNorm: norm(e.gradient[i].Vector),
		}
	}
	return step
}

// gradient is that of every layer.
func (s *Step) gradient() []loader.Parameters {
	all := make([]loader.Parameters, len(s.Layers))
	for i, l := range s.Layers {
		all[i] = l.Gradient
	}
	return all
}

// step moves on from the last evaluation, whose parameters stay as they are.
func (d *descent) step() {
	d.params = clone(d.params)
	d.optimizer.step(d.params)
	d.limit(d.params)
	d.iter++
}

// limit keeps vectors and rows within the norms that the job allows, in place.
func (d *descent) limit(params []loader.Parameters) {
	for i, p := range params {
		if d.job.MaxNorm != nil {
			limit(p.Vector, *d.job.MaxNorm*d.scales.units[i])
		}
		for _, row := range rows(p)[1:] {
			limit(row, d.job.MaxAffineNorm)
		}
	}
}

func (d *descent) result(step *Step, iters int, stop Stop) *Result {
	r := &Result{
		Steering: &loader.Steering{
			Kind: d.job.Kind(), Clamp: d.job.clamp(), Layers: d.layers, Shared: d.job.Shared, PromptOnly: d.job.OnlyHookPrompt,
		},
		Iters: iters, Stop: stop, Loss: step.Loss, Losses: step.Losses,
		Norms:          map[string]float64{},
		Evaluations:    len(d.seconds),
		SecondsPerStep: median(d.seconds),
		TokensPerStep:  d.objective.session.BatchTokens(),
	}
	for _, l := range step.Layers {
		r.Steering.Params = append(r.Steering.Params, l.Params)
		r.Norms[l.Layer] = l.Norm
	}
	return r
}

// A stopping tells when a run ends. It is asked once after each evaluation.
type stopping struct {
	job        *Job
	met, still int     // evaluations in a row that met the target, that hardly changed the loss
	previous   float64 // loss
}

// reason is "" if the run goes on.
func (s *stopping) reason(step *Step, completions []completion) Stop {
	patience := s.job.TargetLossTargetIters
	s.met++
	if !s.meets(step, completions) {
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
func (s *stopping) meets(step *Step, completions []completion) bool {
	if s.job.DoTargetLossSum {
		return s.job.TargetLoss != nil && step.Loss <= *s.job.TargetLoss
	}
	targets := 0
	for _, c := range completions {
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
