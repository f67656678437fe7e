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
	Backward(ctx context.Context, weights [][]float64) ([]ggmlsteer.Operation, error)
	BatchTokens() int
	Close() error
}

// An objective is what a job descends in, as a function of the parameters: the sum of
// the completions' losses, with regularizers where several layers have a vector each.
type objective struct {
	job         *Job
	layers      []int
	completions []completion
	session     evaluator // its sequences are parallel to completions
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

// evaluate is the objective with its gradient.
func (o *objective) evaluate(ctx context.Context, params []loader.Parameters) (*evaluation, error) {
	e, slopes, err := o.forward(ctx, params)
	if err != nil {
		return nil, err
	}
	sum, err := o.backward(ctx, params, slopes)
	if err != nil {
		return nil, err
	}
	if len(o.layers) > 1 && !o.job.Shared {
		vectors := make([][]float32, len(params))
		for i, p := range params {
			vectors[i] = p.Vector
		}
		e.loss += o.job.regularize(vectors, sum)
	}
	e.gradient = make([]loader.Parameters, len(params))
	for i := range sum {
		v := make([]float32, len(sum[i]))
		for n, x := range sum[i] {
			v[n] = float32(x)
		}
		if !finite(v) {
			return nil, o.blame(ctx, slopes)
		}
		e.gradient[i].Vector = v
	}
	return e, nil
}

// forward is the objective without regularizers and gradient; slopes are the
// derivatives by each target's log-probability.
func (o *objective) forward(ctx context.Context, params []loader.Parameters) (e *evaluation, slopes [][]float64, err error) {
	probs, err := o.session.Forward(ctx, o.operations(params))
	if err != nil {
		return nil, nil, err
	}
	e = &evaluation{losses: make(Losses, len(o.job.Examples))}
	for i := range o.job.Examples {
		for side, s := range o.job.Examples[i].sides() {
			e.losses[i][side] = make([]float64, len(s.completions))
		}
	}
	slopes = make([][]float64, len(o.completions))
	for i, c := range o.completions {
		var loss float64
		loss, slopes[i] = o.job.completionLoss(c.isSrc(), probs[i], c.target)
		if math.IsNaN(loss) || math.IsInf(loss, 0) {
			return nil, nil, &notFinite{fmt.Sprintf("the loss of %s is %v", c.name, loss)}
		}
		e.losses[c.example][c.side][c.index] = loss
		e.loss += loss
	}
	return e, slopes, nil
}

// backward is the gradient of forward, at its parameters.
func (o *objective) backward(ctx context.Context, params []loader.Parameters, slopes [][]float64) ([][]float64, error) {
	gradients, err := o.session.Backward(ctx, slopes)
	if err != nil {
		return nil, err
	}
	return o.collect(params, gradients), nil
}

// operations are the engine's form of the parameters, layer by layer.
func (o *objective) operations(params []loader.Parameters) []ggmlsteer.Operation {
	ops := make([]ggmlsteer.Operation, len(o.layers))
	for i := range ops {
		ops[i] = ggmlsteer.Lower(loader.Add, 0, params[o.owner(i)])
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

// collect is the gradient with respect to each vector, from that of each layer's operation.
func (o *objective) collect(params []loader.Parameters, gradients []ggmlsteer.Operation) [][]float64 {
	sum := make([][]float64, len(params))
	for i := range sum {
		sum[i] = make([]float64, len(params[i].Vector))
	}
	for i, op := range gradients {
		for n, g := range op.Vectors[0] {
			sum[o.owner(i)][n] += float64(g)
		}
	}
	return sum
}

// blame finds the completion whose gradient is not finite, at the point of the
// last forward.
func (o *objective) blame(ctx context.Context, slopes [][]float64) error {
	for i, c := range o.completions {
		alone := make([][]float64, len(slopes))
		for k := range slopes {
			alone[k] = make([]float64, len(slopes[k]))
		}
		alone[i] = slopes[i]
		gradients, err := o.session.Backward(ctx, alone)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(gradients, func(op ggmlsteer.Operation) bool { return !finite(op.Vectors[0]) }) {
			return &notFinite{fmt.Sprintf("the gradient of the loss of %s is not finite", c.name)}
		}
	}
	return &notFinite{"the gradient of the sum of the losses is not finite"}
}
