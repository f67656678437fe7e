package optimize

import (
	"math"
	"slices"

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
	Pairs []pair    // the last of them, oldest first
	Bound float64   // of a step's length

	At, Slope []float64 // the last step's end: parameters and gradient
	Loss      float64
	Move      []float64 // the step from there
	Trials    int       // evaluations of it that were not accepted
}

// A pair is the change of the parameters in a step, and that of the gradient.
type pair struct {
	S, Y []float64
	Rho  float64 // 1/(s·y)
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
	if b.At == nil {
		b.Bound = lbfgsFirst * math.Sqrt(float64(len(x)))
		b.At, b.Slope, b.Loss = x, g, loss
		return true
	}
	s, y := minus(x, b.At), minus(g, b.Slope)
	if loss > b.Loss+lbfgsLeast*dot(b.Slope, s) && b.Trials < lbfgsTrials {
		return false
	}
	const parallel = 1e-10 // cosine: below, the curvature is rounding, or not that of a valley
	if sy := dot(s, y); sy > parallel*length(s)*length(y) {
		b.Pairs = append(b.Pairs, pair{s, y, 1 / sy})
		b.Pairs = b.Pairs[max(0, len(b.Pairs)-lbfgsPairs):]
	}
	if b.Trials == 0 {
		b.Bound = max(b.Bound, lbfgsGrowth*length(s))
	} else {
		b.Bound = length(s)
	}
	b.At, b.Slope, b.Loss = x, g, loss
	return true
}

func (b *lbfgs) step(params []loader.Parameters) {
	b.Move = b.direction()
	if n := length(b.Move); n > b.Bound || len(b.Pairs) == 0 && n > 0 { // the gradient alone tells no length
		scale(b.Move, b.Bound/n)
	}
	b.Trials = 0
	b.put(params)
}

// retreat takes half the step that was not accepted.
func (b *lbfgs) retreat(params []loader.Parameters) {
	scale(b.Move, 0.5)
	b.Trials++
	b.put(params)
}

func (b *lbfgs) put(params []loader.Parameters) {
	k := 0
	for i, p := range params {
		for _, row := range rows(p) {
			for n := range row {
				row[n] = float32((b.At[k] + b.Move[k]) * b.lr[i])
				k++
			}
		}
	}
}

// direction is −H·gradient, H the inverse Hessian that the pairs tell.
func (b *lbfgs) direction() []float64 {
	q := make([]float64, len(b.Slope))
	copy(q, b.Slope)
	alpha := make([]float64, len(b.Pairs))
	for i := len(b.Pairs) - 1; i >= 0; i-- {
		alpha[i] = b.Pairs[i].Rho * dot(b.Pairs[i].S, q)
		axpy(-alpha[i], b.Pairs[i].Y, q)
	}
	if n := len(b.Pairs); n > 0 {
		last := b.Pairs[n-1]
		scale(q, 1/(last.Rho*dot(last.Y, last.Y)))
	}
	for i, p := range b.Pairs {
		beta := p.Rho * dot(p.Y, q)
		axpy(alpha[i]-beta, p.S, q)
	}
	scale(q, -1)
	return q
}

func (b *lbfgs) fits(widths []int) bool {
	n := 0
	for _, width := range widths {
		n += width
	}
	all := [][]float64{b.At, b.Slope, b.Move}
	for _, p := range b.Pairs {
		all = append(all, p.S, p.Y)
	}
	return !slices.ContainsFunc(all, func(x []float64) bool { return len(x) != n })
}

func minus(a, b []float64) []float64 {
	d := make([]float64, len(a))
	for i := range a {
		d[i] = a[i] - b[i]
	}
	return d
}
