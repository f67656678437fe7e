package optimize

import (
	"math"

	"github.com/llsteer/llsteer/loader"
)

// An lbfgs is limited-memory BFGS (Nocedal and Wright, Numerical Optimization, 2nd
// edition, algorithms 7.4 and 7.5) with a bound on the length of a step: one that lowers the
// loss may be followed by one four times as long, one that does not is halved until it
// does.
//
// Parameters are measured in units of their learning rate, so that one vector's scale is like
// another's.
type lbfgs struct {
	lr    []float64 // of each layer's parameters
	pairs []pair    // the last of them, oldest first
	bound float64   // of a step's length

	at, slope []float64 // the last step's end: parameters and gradient
	loss      float64
	move      []float64 // the step from there
	trials    int       // evaluations of it that were not accepted
}

// A pair is the change of the parameters in a step, and that of the gradient.
type pair struct {
	s, y []float64
	rho  float64 // 1/(s·y)
}

const (
	lbfgsPairs  = 10
	lbfgsFirst  = 6.0  // first step, in steps of Adam
	lbfgsGrowth = 4.0  // of the trust region, at most
	lbfgsLeast  = 1e-4 // share of the linear decrease that a step has to bring
	lbfgsTrials = 12   // halvings; a step that is still no good is taken
)

// flat are the rows of parameters one after the other, in units of lr.
func (b *lbfgs) flat(params []loader.Parameters, exponent float64) []float64 {
	var x []float64
	for i, p := range params {
		unit := math.Pow(b.lr[i], exponent)
		for _, row := range rows(p) {
			for _, v := range row {
				x = append(x, float64(v)*unit)
			}
		}
	}
	return x
}

func newLBFGS(lr []float64) *lbfgs { return &lbfgs{lr: lr} }

func (b *lbfgs) accepts(params, gradient []loader.Parameters, loss float64) bool {
	x, g := b.flat(params, -1), b.flat(gradient, 1)
	if b.at == nil {
		b.bound = lbfgsFirst * math.Sqrt(float64(len(x)))
		b.at, b.slope, b.loss = x, g, loss
		return true
	}
	s, y := minus(x, b.at), minus(g, b.slope)
	if loss > b.loss+lbfgsLeast*dot(b.slope, s) && b.trials < lbfgsTrials {
		return false
	}
	const parallel = 1e-10 // cosine: below, the curvature is rounding, or not that of a valley
	if sy := dot(s, y); sy > parallel*length(s)*length(y) {
		b.pairs = append(b.pairs, pair{s, y, 1 / sy})
		b.pairs = b.pairs[max(0, len(b.pairs)-lbfgsPairs):]
	}
	if b.trials == 0 {
		b.bound = max(b.bound, lbfgsGrowth*length(s))
	} else {
		b.bound = length(s)
	}
	b.at, b.slope, b.loss = x, g, loss
	return true
}

func (b *lbfgs) step(params []loader.Parameters) {
	b.move = b.direction()
	if n := length(b.move); n > b.bound || len(b.pairs) == 0 && n > 0 { // the gradient alone tells no length
		scale(b.move, b.bound/n)
	}
	b.trials = 0
	b.put(params)
}

// retreat takes half the step that was not accepted.
func (b *lbfgs) retreat(params []loader.Parameters) {
	scale(b.move, 0.5)
	b.trials++
	b.put(params)
}

func (b *lbfgs) put(params []loader.Parameters) {
	k := 0
	for i, p := range params {
		for _, row := range rows(p) {
			for n := range row {
				row[n] = float32((b.at[k] + b.move[k]) * b.lr[i])
				k++
			}
		}
	}
}

// direction is −H·gradient, H the inverse Hessian that the pairs tell.
func (b *lbfgs) direction() []float64 {
	q := make([]float64, len(b.slope))
	copy(q, b.slope)
	alpha := make([]float64, len(b.pairs))
	for i := len(b.pairs) - 1; i >= 0; i-- {
		alpha[i] = b.pairs[i].rho * dot(b.pairs[i].s, q)
		axpy(-alpha[i], b.pairs[i].y, q)
	}
	if n := len(b.pairs); n > 0 {
		last := b.pairs[n-1]
		scale(q, 1/(last.rho*dot(last.y, last.y)))
	}
	for i, p := range b.pairs {
		beta := p.rho * dot(p.y, q)
		axpy(alpha[i]-beta, p.s, q)
	}
	scale(q, -1)
	return q
}

func minus(a, b []float64) []float64 {
	d := make([]float64, len(a))
	for i := range a {
		d[i] = a[i] - b[i]
	}
	return d
}
