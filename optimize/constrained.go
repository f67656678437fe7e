package optimize

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// Values of output_constr_objective.
const (
	objectiveNorm  = "norm"
	objectiveMelbo = "melbo"
)

// An OutputObjective is what the output-constrained stage makes small while no
// completion's loss may rise.
type OutputObjective interface {
	// Observed is the layer at whose input the residual stream of the completions'
	// tokens is observed; nil: none.
	Observed() *int
	// Evaluate returns the objective at a point, its gradient by the parameters,
	// parallel to them (nil: 0), and by the steered streams, parallel to them (nil: 0).
	Evaluate(at Point) (value float64, byParams []loader.Parameters, byStreams [][][]float32)
}

// A Point is where an OutputObjective is evaluated.
type Point struct {
	Params []loader.Parameters // of each layer, or shared
	// Steered[i][j] and Unsteered[i][j] are the stream of the j-th token of completion
	// i; nil where no layer is observed.
	Steered, Unsteered [][][]float32
}

// limitsNorm says whether an objective needs a constraint that keeps the norm from growing.
func limitsNorm(o OutputObjective) bool {
	_, isNorm := o.(sizeObjective)
	return !isNorm
}

// outputObjective is the one that the job asks for.
func (j *Job) outputObjective() OutputObjective {
	switch {
	case j.OutputObjective != nil:
		return j.OutputObjective
	case j.OutputConstrObjective == objectiveMelbo:
		return melbo{*j.MelboLayer}
	}
	return sizeObjective{}
}

// checkMelbo refuses a layer that no steering reaches, or that is not there.
func (j *Job) checkMelbo(layers []int, n int) error {
	switch {
	case !j.DoOutputConstr || j.MelboLayer == nil:
		return nil
	case *j.MelboLayer >= n:
		return badJob("melbo_layer", "there is no layer %d: this model has layers 0 to %d", *j.MelboLayer, n-1)
	case *j.MelboLayer <= layers[0]:
		return badJob("melbo_layer", "the input of layer %d is not changed by a steering at layer %d: give a later one", *j.MelboLayer, layers[0])
	}
	return nil
}

// A sizeObjective is Σ ‖v‖₂ + ‖M‖F over the parameters, M = LᵀR.
type sizeObjective struct{}

func (sizeObjective) Observed() *int { return nil }

func (sizeObjective) Evaluate(at Point) (value float64, byParams []loader.Parameters, _ [][][]float32) {
	byParams = make([]loader.Parameters, len(at.Params))
	for i, p := range at.Params {
		n := norm(p.Vector)
		v := doubles(p.Vector)
		if n > 0 {
			scale(v, 1/n)
		}
		value += n
		m, left, right := matrixNorm(p)
		value += m
		byParams[i] = loader.Parameters{Vector: singles(v), Left: left, Right: right}
	}
	return value, byParams, nil
}

// matrixNorm is ‖LᵀR‖F, from ‖LᵀR‖² = Σ (LLᵀ)∘(RRᵀ), with its gradient RRᵀL/‖LᵀR‖ by L
// and LLᵀR/‖LᵀR‖ by R; 0 where the norm is.
func matrixNorm(p loader.Parameters) (norm float64, byLeft, byRight [][]float32) {
	rank := len(p.Left)
	gram := func(rows [][]float32) [][]float64 {
		g := make([][]float64, rank)
		for i := range g {
			g[i] = make([]float64, rank)
			for j := range g[i] {
				for n := range rows[i] {
					g[i][j] += float64(rows[i][n]) * float64(rows[j][n])
				}
			}
		}
		return g
	}
	left, right := gram(p.Left), gram(p.Right)
	for i := range left {
		for j := range left[i] {
			norm += left[i][j] * right[i][j]
		}
	}
	norm = math.Sqrt(max(norm, 0))
	times := func(g [][]float64, rows [][]float32) [][]float32 {
		product := make([][]float32, rank)
		for i := range product {
			sum := make([]float64, len(rows[i]))
			for j := range rank {
				if norm > 0 {
					axpy(g[i][j]/norm, doubles(rows[j]), sum)
				}
			}
			product[i] = singles(sum)
		}
		return product
	}
	return norm, times(right, p.Left), times(left, p.Right)
}

// A melbo is minus the mean Euclidean distance of steered and unsteered streams at the
// input of a layer, over all tokens of all completions.
type melbo struct{ layer int }

func (m melbo) Observed() *int { return &m.layer }

func (m melbo) Evaluate(at Point) (value float64, _ []loader.Parameters, byStreams [][][]float32) {
	tokens := 0.0
	for _, of := range at.Steered {
		tokens += float64(len(of))
	}
	byStreams = make([][][]float32, len(at.Steered))
	for i, of := range at.Steered {
		for j, x := range of {
			apart := doubles(x)
			axpy(-1, doubles(at.Unsteered[i][j]), apart)
			distance := length(apart)
			value -= distance / tokens
			if distance > 0 {
				scale(apart, -1/(distance*tokens))
			}
			byStreams[i] = append(byStreams[i], singles(apart))
		}
	}
	return value, nil, byStreams
}

// A constrained is the output-constrained stage (docs/steering.md): the modified
// differential multiplier method (Platt and Barr, "Constrained differential
// optimization", 1987), with Adamax (arXiv 1412.6980, section 7.1) as its steps.
//
// It makes f(params) + scale·Σ (λ h + h²/2) small in the parameters and the slacks s, and
// large in the multipliers λ, with h = m − g − s² for each constraint g ≤ m.
type constrained struct {
	*descent
	*shrinking
	what        OutputObjective
	normLimited bool // one more constraint, the last: that of Σ ‖v‖ + ‖M‖F
	unsteered   [][][]float32
}

// A shrinking is what an output-constrained stage knows between two evaluations, beside the
// parameters. It is kept, as JSON, to go on from.
type shrinking struct {
	Entered       *Step // the last of the first stage
	Stop          Stop  // why that ended
	TokensPerStep int   // of the first stage

	Limits, Slacks, Multipliers []float64 // m, s, λ: of each completion, then perhaps of the norm
	Factor                      float64
	Steps                       adamax
	Previous                    float64 // value of f one step ago
	Best                        *Step   // the least value whose constraints all hold; nil before the first evaluation
	BestValue                   float64
	LossesBefore                Losses
}

// A trial is one evaluation of the stage.
type trial struct {
	params     []loader.Parameters
	value      float64 // f
	byParams   []loader.Parameters
	byStreams  [][][]float32
	losses     []float64
	slopes     [][]float64
	gaps       []float64 // m − g of each constraint
	evaluation *evaluation
}

func (t *trial) feasible() bool {
	return !slices.ContainsFunc(t.gaps, func(gap float64) bool { return !(gap >= 0) })
}

// run returns the best step: the evaluation with the least objective whose constraints
// all hold, that of the parameters which entered among them. The end of ctx is an error that
// comes with what was found until then, nil before the first evaluation.
func (c *constrained) run(ctx context.Context) (*Step, *OutputConstrained, error) {
	c.kept()
	if err := c.open(ctx); err != nil {
		return nil, nil, err
	}
	rates := c.rates()
	for {
		t, err := c.try(ctx, c.Params)
		var gradient []loader.Parameters
		var bySlack, byMultiplier []float64
		if err == nil {
			if c.Iter == 0 {
				c.constrain(t)
			}
			t.gaps = c.gaps(t)
			gradient, bySlack, byMultiplier, err = c.differentiate(ctx, t)
		}
		if err != nil && ctx.Err() != nil {
			c.kept()
			if c.shrinking.Best == nil {
				return nil, nil, err
			}
			step, summary := c.summarize(c.Iter - 1)
			return step, summary, err
		}
		if err != nil {
			return nil, nil, c.explain(err)
		}
		t.evaluation.gradient = gradient
		step := c.stepOf(c.Iter, t.params, t.evaluation)
		step.Stage = 2
		c.report(step)
		if c.Iter == 0 || t.feasible() && t.value < c.BestValue {
			c.shrinking.Best, c.BestValue = step, t.value
		}
		if c.Iter > 0 && t.value > c.shrinking.Previous || c.job.MaxOutputConstrIters != nil && c.Iter >= *c.job.MaxOutputConstrIters {
			step, summary := c.summarize(c.Iter)
			return step, summary, nil
		}
		c.shrinking.Previous = t.value
		c.Params = clone(c.Params)
		c.Steps.step(rates, c.Params, gradient, c.Slacks, bySlack, c.Multipliers, byMultiplier)
		c.limit(c.Params)
		c.Iter++
		c.kept()
	}
}

// open prepares all completions, as they are.
func (c *constrained) open(ctx context.Context) error {
	c.what = c.job.outputObjective()
	c.normLimited = limitsNorm(c.what)
	o := c.objective
	o.noise, o.prompts = nil, 0
	o.observed = c.what.Observed()
	if err := o.open(o.all); err != nil || o.observed == nil {
		return err
	}
	var err error
	_, c.unsteered, err = o.session.ForwardObserved(ctx, o.nothing())
	return err
}

// summarize tells of the stage after so many steps. The best one is reported once more if
// another was later, so that the last report describes the result.
func (c *constrained) summarize(iters int) (*Step, *OutputConstrained) {
	best := c.shrinking.Best
	if best.Iter != iters {
		again := *best
		again.Iter = iters + 1
		c.report(&again)
	}
	return best, &OutputConstrained{
		Iters: iters, NormBefore: vectorNorms(c.Entered.params()), NormAfter: vectorNorms(best.params()),
		LossesBefore: c.LossesBefore, LossesAfter: best.Losses,
	}
}

// rates is Adamax's learning rate for each parameters. An automatic one of the descent
// is long for this stage, which follows the edge of what the losses allow.
func (c *constrained) rates() []float64 {
	const share = 0.2
	lr := slices.Clone(c.scales.lr)
	for i := range lr {
		switch {
		case c.job.OutputConstrLR != nil:
			lr[i] = *c.job.OutputConstrLR * c.scales.units[i]
		case c.job.LR == nil:
			lr[i] *= share
		}
	}
	return lr
}

// constrain sets up the constraints at the parameters that enter the stage.
func (c *constrained) constrain(entered *trial) {
	target := slices.Max(entered.losses)
	if c.job.TargetLoss != nil {
		target = *c.job.TargetLoss
	}
	for i, of := range c.objective.completions {
		own := target
		if of.target != nil {
			own = *of.target
		}
		c.Limits = append(c.Limits, min(own, entered.losses[i]+c.job.Eps))
	}
	if c.normLimited {
		c.Limits = append(c.Limits, size(entered.params))
	}
	for _, gap := range c.gaps(entered) {
		c.Slacks = append(c.Slacks, math.Sqrt(max(0, gap)))
	}
	c.Multipliers = make([]float64, len(c.Limits))
	c.Factor = size(entered.params) / (c.job.Eps + target)
	c.LossesBefore = entered.evaluation.losses
}

// gaps are m − g of each constraint.
func (c *constrained) gaps(t *trial) []float64 {
	gaps := make([]float64, len(c.Limits))
	for i, limit := range c.Limits {
		if i < len(t.losses) {
			gaps[i] = limit - t.losses[i]
		} else {
			gaps[i] = limit - size(t.params)
		}
	}
	return gaps
}

// try evaluates losses and objective.
func (c *constrained) try(ctx context.Context, params []loader.Parameters) (*trial, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	o := c.objective
	t := &trial{params: params}
	at := Point{Params: params, Unsteered: c.unsteered}
	ops := o.operations([][]loader.Parameters{params})
	var probs [][]ggmlsteer.Prob
	var err error
	if o.observed != nil {
		probs, at.Steered, err = o.session.ForwardObserved(ctx, ops)
	} else {
		probs, err = o.session.Forward(ctx, ops)
	}
	if err != nil {
		return nil, err
	}
	if t.losses, t.slopes, err = o.lossesOf(probs); err != nil {
		return nil, err
	}
	t.value, t.byParams, t.byStreams = c.what.Evaluate(at)
	if math.IsNaN(t.value) || math.IsInf(t.value, 0) {
		return nil, fmt.Errorf("in the output-constrained stage, after %d steps, the objective is %v", c.Iter, t.value)
	}
	t.evaluation = o.report(params, t.losses)
	return t, nil
}

// differentiate is the gradient of the Lagrangian by the parameters, the slacks and the
// multipliers, at the last trial.
func (c *constrained) differentiate(ctx context.Context, t *trial) (gradient []loader.Parameters, bySlack, byMultiplier []float64, err error) {
	o := c.objective
	bySlack, byMultiplier = make([]float64, len(c.Limits)), make([]float64, len(c.Limits))
	pull := make([]float64, len(c.Limits)) // derivative by g
	for i, gap := range t.gaps {
		h := gap - c.Slacks[i]*c.Slacks[i]
		pull[i] = -c.Factor * (c.Multipliers[i] + h)
		bySlack[i] = 2 * c.Slacks[i] * pull[i]
		byMultiplier[i] = c.Factor * h
	}
	for i := range t.slopes {
		scale(t.slopes[i], pull[i])
	}
	var ops []ggmlsteer.Operation
	if t.byStreams != nil {
		ops, err = o.session.BackwardObserved(ctx, t.slopes, t.byStreams)
	} else {
		ops, err = o.session.Backward(ctx, t.slopes)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	sum := o.collect([][]loader.Parameters{t.params}, ops)[0]
	if t.byParams != nil {
		for i, p := range t.byParams {
			for r, row := range rows(p) {
				axpy(1, doubles(row), sum[i][r])
			}
		}
	}
	if c.normLimited {
		_, bySize, _ := sizeObjective{}.Evaluate(Point{Params: t.params})
		for i, p := range bySize {
			for r, row := range rows(p) {
				axpy(pull[len(pull)-1], doubles(row), sum[i][r])
			}
		}
	}
	gradient = parametersOf(sum)
	for _, p := range gradient {
		if slices.ContainsFunc(rows(p), func(row []float32) bool { return !finite(row) }) {
			return nil, nil, nil, &notFinite{"the gradient of the output-constrained stage is not finite"}
		}
	}
	return gradient, bySlack, byMultiplier, nil
}

// size is Σ ‖v‖₂ + ‖M‖F over the parameters.
func size(params []loader.Parameters) float64 {
	value, _, _ := sizeObjective{}.Evaluate(Point{Params: params})
	return value
}

// vectorNorms is Σ ‖v‖₂ over the parameters.
func vectorNorms(params []loader.Parameters) float64 {
	sum := 0.0
	for _, p := range params {
		sum += norm(p.Vector)
	}
	return sum
}

// An adamax holds the state of Adamax (arXiv 1412.6980, algorithm 2) for parameters,
// slacks and multipliers.
type adamax struct {
	Taken          int // steps
	First, Largest [][]float64
}

// step moves params and slacks against their gradients, multipliers along theirs. rates are
// the parameters' learning rates, of which slacks and multipliers have the least.
func (a *adamax) step(rates []float64, params, gradient []loader.Parameters, slacks, bySlack, multipliers, byMultiplier []float64) {
	const beta1, beta2, eps = 0.9, 0.999, 1e-8
	a.Taken++
	k := 0
	moves := func(slopes []float64, lr float64) []float64 {
		if k == len(a.First) {
			a.First, a.Largest = append(a.First, make([]float64, len(slopes))), append(a.Largest, make([]float64, len(slopes)))
		}
		first, largest := a.First[k], a.Largest[k]
		k++
		by := make([]float64, len(slopes))
		rate := lr / (1 - math.Pow(beta1, float64(a.Taken)))
		for n, g := range slopes {
			first[n] = beta1*first[n] + (1-beta1)*g
			largest[n] = max(beta2*largest[n], math.Abs(g)+eps)
			by[n] = rate * first[n] / largest[n]
		}
		return by
	}
	for i := range params {
		slopes := rows(gradient[i])
		for r, row := range rows(params[i]) {
			for n, by := range moves(doubles(slopes[r]), rates[i]) {
				row[n] = float32(float64(row[n]) - by)
			}
		}
	}
	axpy(-1, moves(bySlack, slices.Min(rates)), slacks)
	axpy(1, moves(byMultiplier, slices.Min(rates)), multipliers)
}

// fits is as an optimizer's.
func (a *adamax) fits(widths []int) bool {
	return a.Taken > 0 && areOfWidths(a.First, widths) && areOfWidths(a.Largest, widths)
}
