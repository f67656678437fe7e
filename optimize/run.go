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

// Run finds the steering that a job asks for on a model, in the job's precision.
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
	return runFrom(ctx, m, job, nil, nil, progress)
}

func runFrom(ctx context.Context, m model, job *Job, from []byte, keep Keep, progress func(Step)) (*Result, error) {
	s, err := newSetup(ctx, m, job)
	if err != nil {
		return nil, err
	}
	d := s.descent(keep, progress)
	defer d.objective.close()
	if from != nil {
		if err := d.goOn(ctx, from); err != nil {
			return nil, err
		}
	}
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
	state
	objective *objective
	progress  func(Step)
	keep      Keep
}

// descent begins one; its objective is to be closed by the caller.
func (s *setup) descent(keep Keep, progress func(Step)) *descent {
	return &descent{
		setup: s, objective: s.objective(), progress: progress, keep: keep,
		state: state{Params: s.params, Optimizer: s.optimizer(), Stopping: stopping{job: s.job}},
	}
}

func (d *descent) run(ctx context.Context) (*Result, error) {
	if d.Shrinking != nil {
		return d.shrink(ctx)
	}
	for {
		d.kept()
		began := time.Now()
		step, err := d.evaluate(ctx)
		if err != nil {
			if ctx.Err() != nil && d.Best != nil {
				d.kept()
				return d.result(d.Best, d.Iter-1, d.objective.session.BatchTokens(), StopInterrupted), nil
			}
			return nil, err
		}
		d.Seconds = append(d.Seconds, time.Since(began).Seconds())
		if !d.Optimizer.accepts(d.Params, step.gradient(), step.Loss) {
			d.Params = clone(d.Params)
			d.Optimizer.retreat(d.Params)
			d.limit(d.Params)
			continue
		}
		d.report(step)
		if d.Best == nil {
			d.First = &first{step.Loss, step.Losses}
		}
		if d.Best == nil || step.Loss < d.Best.Loss {
			d.Best = step
		}
		if reason := d.Stopping.reason(step, d.objective.completions); reason != "" {
			return d.finish(ctx, step, reason)
		}
		d.step()
	}
}

// finish is the result of a descent that ended by itself, after the output-constrained
// stage if there is one: without a target, or once it is met.
func (d *descent) finish(ctx context.Context, last *Step, stop Stop) (*Result, error) {
	if !d.job.DoOutputConstr || stop != StopTarget && d.job.hasTargets() {
		return d.result(last, last.Iter, d.objective.session.BatchTokens(), stop), nil
	}
	d.Iter, d.Shrinking = 0, &shrinking{Entered: last, Stop: stop, TokensPerStep: d.objective.session.BatchTokens()}
	return d.shrink(ctx)
}

// shrink is the output-constrained stage and the result after it.
func (d *descent) shrink(ctx context.Context) (*Result, error) {
	entered, stop := d.Shrinking.Entered, d.Shrinking.Stop
	c := &constrained{descent: d, shrinking: d.Shrinking}
	step, summary, err := c.run(ctx)
	if err != nil {
		if ctx.Err() == nil {
			return nil, err
		}
		stop = StopInterrupted
	}
	if step == nil {
		step = entered
	}
	r := d.result(step, entered.Iter, d.Shrinking.TokensPerStep, stop)
	r.OutputConstrained = summary
	return r, nil
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
	e, err := d.objective.evaluate(ctx, d.Params, d.Iter)
	if err != nil {
		return nil, d.explain(err)
	}
	return d.stepOf(d.Iter, d.Params, e), nil
}

// explain says when a loss or gradient was not finite, and what may help.
func (d *descent) explain(err error) error {
	var diverged *notFinite
	if !errors.As(err, &diverged) {
		return err
	}
	remedy := "another start or an eps above 0 may help"
	if d.Iter > 0 {
		remedy = fmt.Sprintf("a smaller lr than %v, a max_norm or an eps above 0 may help", slices.Max(d.scales.lr))
	}
	return fmt.Errorf("after %d steps %s; %s", d.Iter, diverged.what, remedy)
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

// params are those of every layer.
func (s *Step) params() []loader.Parameters {
	all := make([]loader.Parameters, len(s.Layers))
	for i, l := range s.Layers {
		all[i] = l.Params
	}
	return all
}

// step moves on from the last evaluation, whose parameters stay as they are.
func (d *descent) step() {
	d.Params = clone(d.Params)
	d.Optimizer.step(d.Params)
	d.limit(d.Params)
	d.Iter++
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

// result is that of a step of so many tokens.
func (d *descent) result(step *Step, iters, tokens int, stop Stop) *Result {
	r := &Result{
		Steering: &loader.Steering{
			Kind: d.job.Kind(), Clamp: d.job.clamp(), Layers: d.layers, Shared: d.job.Shared, PromptOnly: d.job.OnlyHookPrompt,
		},
		Iters: iters, Stop: stop, Loss: step.Loss, Losses: step.Losses,
		Norms:          map[string]float64{},
		Evaluations:    len(d.Seconds),
		SecondsPerStep: median(d.Seconds),
		TokensPerStep:  tokens,
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
	Met, Still int     // evaluations in a row that met the target, that hardly changed the loss
	Previous   float64 // loss
}

// reason is "" if the run goes on.
func (s *stopping) reason(step *Step, completions []completion) Stop {
	patience := s.job.TargetLossTargetIters
	s.Met++
	if !s.meets(step, completions) {
		s.Met = 0
	}
	s.Still++
	if step.Iter == 0 || !(math.Abs(step.Loss-s.Previous) < s.job.Eps) {
		s.Still = 0
	}
	s.Previous = step.Loss
	switch {
	case s.Met >= patience:
		return StopTarget
	case s.Still >= patience:
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
