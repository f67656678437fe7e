package optimize

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// An evaluator computes the probabilities of completions and their gradient;
// *ggmlsteer.Session is one.
type evaluator interface {
	Forward(ctx context.Context, ops []ggmlsteer.Operation) ([][]ggmlsteer.Prob, error)
	ForwardObserved(ctx context.Context, ops []ggmlsteer.Operation) ([][]ggmlsteer.Prob, [][][]float32, error)
	Backward(ctx context.Context, weights [][]float64) ([]ggmlsteer.Operation, error)
	BackwardObserved(ctx context.Context, weights [][]float64, dStreams [][][]float32) ([]ggmlsteer.Operation, error)
	BatchTokens() int
	Close() error
}

// An objective is what a job descends in, as a function of the parameters: the sum of
// the completions' losses, with regularizers where several layers have a vector each.
type objective struct {
	job         *Job
	model       model
	layers      []int
	units       []float64    // of each parameters' vector; see Job.units
	all         []completion // of the job
	completions []completion // of this step: all, or those of a minibatch
	prompts     int          // of the minibatch; 0: there is none
	observed    *int         // layer whose stream the session observes; nil: none
	session     evaluator    // its sequences are parallel to completions
	noise       *noise       // nil: none
}

// An evaluation is the objective at some parameters.
type evaluation struct {
	loss     float64 // total, with regularizers
	losses   Losses
	gradient []loader.Parameters // parallel to the parameters
}

// A notFinite is a loss or a gradient that is NaN or infinite.
type notFinite struct{ what string }

func (e *notFinite) Error() string { return e.what }

// open prepares the evaluation of completions, in place of those before.
func (o *objective) open(completions []completion) error {
	if err := o.close(); err != nil {
		return err
	}
	vectors, rank := o.job.shape()
	n := 1
	if o.noise != nil {
		n = len(completions)
	}
	session, err := o.model.newSession(ggmlsteer.SessionOptions{
		Layers: o.layers, Vectors: n * vectors, Rank: n * rank, Coldness: o.job.Coldness, Observed: o.observed,
		Precision: o.job.Precision,
	}, o.job.sequences(completions, o.noise != nil))
	if err != nil {
		return err
	}
	o.session, o.completions = session, completions
	return nil
}

func (o *objective) close() error {
	if o.session == nil {
		return nil
	}
	session := o.session
	o.session = nil
	return session.Close()
}

// evaluate is the objective with its gradient, at the start of step iter.
func (o *objective) evaluate(ctx context.Context, params []loader.Parameters, iter int) (*evaluation, error) {
	if err := o.window(ctx, params, iter); err != nil {
		return nil, err
	}
	draws := 1
	if o.noise != nil {
		draws = o.job.NoiseIters
	}
	losses := make([]float64, len(o.completions))
	sum := zeros(params)
	var weights [][]float64
	for draw := range draws {
		sets := [][]loader.Parameters{params}
		if o.noise != nil {
			sets = o.noise.sets(params, iter, draw, o.completions)
		}
		now, slopes, err := o.forward(ctx, sets)
		if err != nil {
			return nil, err
		}
		weights = slopes
		for i, c := range o.completions {
			losses[i] += now[i] / float64(draws)
			scale(weights[i], o.job.objectiveSlope(now[i], c.target)/float64(draws))
		}
		gradients, err := o.backward(ctx, sets, weights)
		if err != nil {
			return nil, err
		}
		for _, of := range gradients {
			add(sum, of)
		}
	}
	e := o.report(params, losses)
	if o.regularized() {
		_, slopes := o.regularizers(params)
		for i := range slopes {
			axpy(1, slopes[i], sum[i][0])
		}
	}
	e.gradient = parametersOf(sum)
	for _, p := range e.gradient {
		if slices.ContainsFunc(rows(p), func(row []float32) bool { return !finite(row) }) {
			return nil, o.blame(ctx, weights)
		}
	}
	return e, nil
}

// report is the objective of these losses, without its gradient.
func (o *objective) report(params []loader.Parameters, losses []float64) *evaluation {
	e := &evaluation{losses: o.nest(losses)}
	for _, loss := range losses {
		e.loss += loss
	}
	if o.prompts > 0 {
		e.loss /= float64(o.prompts)
	}
	if o.regularized() {
		terms, _ := o.regularizers(params)
		e.loss += terms
	}
	return e
}

// regularized says whether there are several vectors to keep small and few.
func (o *objective) regularized() bool { return len(o.layers) > 1 && !o.job.Shared }

// regularizers are the terms and their gradient by each vector, each measured in its unit.
func (o *objective) regularizers(params []loader.Parameters) (float64, [][]float64) {
	vectors, slopes := make([][]float64, len(params)), make([][]float64, len(params))
	for i, p := range params {
		vectors[i], slopes[i] = doubles(p.Vector), make([]float64, len(p.Vector))
		scale(vectors[i], 1/o.units[i])
	}
	terms := o.job.regularize(vectors, slopes)
	for i := range slopes {
		scale(slopes[i], 1/o.units[i])
	}
	return terms, slopes
}

// window opens the session of step iter, if it is not the one that is open.
func (o *objective) window(ctx context.Context, params []loader.Parameters, iter int) error {
	completions := o.all
	if o.job.Minibatch() {
		completions = nil
		n := len(o.job.Prompts)
		o.prompts = o.job.MinibatchSize
		for k := range o.prompts {
			prompt := (iter*o.job.MinibatchSize + k) % n
			for _, c := range o.all {
				if c.example == prompt {
					c.example = k
					completions = append(completions, c)
				}
			}
		}
	}
	if o.session != nil && (!o.job.Minibatch() || len(o.job.Prompts) == o.job.MinibatchSize) {
		return nil
	}
	if err := o.open(completions); err != nil {
		return err
	}
	if o.noise != nil {
		return o.noise.findTangents(ctx, o, params)
	}
	return nil
}

// forward is the loss of each completion, at the parameters that are all completions' or
// at each one's own, and the derivatives of the losses by each target's log-probability.
func (o *objective) forward(ctx context.Context, sets [][]loader.Parameters) (losses []float64, slopes [][]float64, err error) {
	probs, err := o.session.Forward(ctx, o.operations(sets))
	if err != nil {
		return nil, nil, err
	}
	return o.lossesOf(probs)
}

func (o *objective) lossesOf(probs [][]ggmlsteer.Prob) (losses []float64, slopes [][]float64, err error) {
	losses, slopes = make([]float64, len(o.completions)), make([][]float64, len(o.completions))
	for i, c := range o.completions {
		losses[i], slopes[i] = o.job.completionLoss(c.isSrc(), probs[i])
		if math.IsNaN(losses[i]) || math.IsInf(losses[i], 0) {
			return nil, nil, &notFinite{fmt.Sprintf("the loss of %s is %v", c.name, losses[i])}
		}
	}
	return losses, slopes, nil
}

// backward is the gradient of Σ weights·log p by the rows of each set of parameters,
// where the last forward was: gradients[set][parameters][row].
func (o *objective) backward(ctx context.Context, sets [][]loader.Parameters, weights [][]float64) ([][][][]float64, error) {
	ops, err := o.session.Backward(ctx, weights)
	if err != nil {
		return nil, err
	}
	return o.collect(sets, ops), nil
}

// operations are the engine's form of sets of parameters, layer by layer.
func (o *objective) operations(sets [][]loader.Parameters) []ggmlsteer.Operation {
	ops := make([]ggmlsteer.Operation, len(o.layers))
	for i := range ops {
		for _, set := range sets {
			op := ggmlsteer.Lower(o.job.Kind(), o.job.clamp(), set[o.owner(i)])
			ops[i].Vectors = append(ops[i].Vectors, op.Vectors...)
			ops[i].Left = append(ops[i].Left, op.Left...)
			ops[i].Right = append(ops[i].Right, op.Right...)
		}
	}
	return ops
}

// nothing is the operation of no steering.
func (o *objective) nothing() []ggmlsteer.Operation {
	vectors, rank := o.job.shape()
	zero := make([]float32, o.model.Info().Embd)
	ops := make([]ggmlsteer.Operation, len(o.layers))
	for i := range ops {
		ops[i] = ggmlsteer.Operation{
			Vectors: slices.Repeat([][]float32{zero}, vectors), Left: slices.Repeat([][]float32{zero}, rank), Right: slices.Repeat([][]float32{zero}, rank),
		}
	}
	return ops
}

// owner is the index of the parameters of the i-th layer.
func (o *objective) owner(i int) int {
	if o.job.Shared {
		return 0
	}
	return i
}

// collect is the gradient by the rows of each set of parameters, from that by each
// layer's operation.
func (o *objective) collect(sets [][]loader.Parameters, ops []ggmlsteer.Operation) [][][][]float64 {
	vectors, rank := o.job.shape()
	gradients := make([][][][]float64, len(sets))
	for k, set := range sets {
		gradients[k] = zeros(set)
		for i, op := range ops {
			own := ggmlsteer.Operation{
				Vectors: op.Vectors[k*vectors : (k+1)*vectors], Left: op.Left[k*rank : (k+1)*rank], Right: op.Right[k*rank : (k+1)*rank],
			}
			for r, row := range raise(o.job.Kind(), o.job.clamp(), set[o.owner(i)], own) {
				axpy(1, row, gradients[k][o.owner(i)][r])
			}
		}
	}
	return gradients
}

// nest puts the losses of this step's completions where a report has them.
func (o *objective) nest(losses []float64) Losses {
	examples := o.job.examples()
	if o.prompts > 0 {
		examples = slices.Repeat(examples[:1], o.prompts) // all have the same completions
	}
	nested := make(Losses, len(examples))
	for i, e := range examples {
		for side, s := range e.sides() {
			nested[i][side] = make([]float64, len(s.completions))
		}
	}
	for i, c := range o.completions {
		nested[c.example][c.side][c.index] = losses[i]
	}
	return nested
}

// blame finds the completion whose gradient is not finite, at the point of the
// last forward.
func (o *objective) blame(ctx context.Context, weights [][]float64) error {
	for i, c := range o.completions {
		alone := make([][]float64, len(weights))
		for k := range weights {
			alone[k] = make([]float64, len(weights[k]))
		}
		alone[i] = weights[i]
		ops, err := o.session.Backward(ctx, alone)
		if err != nil {
			return err
		}
		for _, op := range ops {
			if slices.ContainsFunc(slices.Concat(op.Vectors, op.Left, op.Right), func(row []float32) bool { return !finite(row) }) {
				return &notFinite{fmt.Sprintf("the gradient of the loss of %s is not finite", c.name)}
			}
		}
	}
	return &notFinite{"the gradient of the sum of the losses is not finite"}
}

// zeros is a gradient of 0 by the rows of parameters.
func zeros(params []loader.Parameters) [][][]float64 {
	sum := make([][][]float64, len(params))
	for i, p := range params {
		for _, row := range rows(p) {
			sum[i] = append(sum[i], make([]float64, len(row)))
		}
	}
	return sum
}

// parametersOf puts rows where parameters have them.
func parametersOf(all [][][]float64) []loader.Parameters {
	params := make([]loader.Parameters, len(all))
	for i, of := range all {
		params[i].Vector = singles(of[0])
		rank := (len(of) - 1) / 2
		for r := range rank {
			params[i].Left = append(params[i].Left, singles(of[1+r]))
			params[i].Right = append(params[i].Right, singles(of[1+rank+r]))
		}
	}
	return params
}

// add adds b to a.
func add(a, b [][][]float64) {
	for i := range a {
		for r := range a[i] {
			axpy(1, b[i][r], a[i][r])
		}
	}
}

// axpy adds factor·x to y.
func axpy(factor float64, x, y []float64) {
	for i := range y {
		y[i] += factor * x[i]
	}
}

func scale(x []float64, factor float64) {
	for i := range x {
		x[i] *= factor
	}
}
