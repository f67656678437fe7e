package optimize

import (
	"math"
	"slices"

	"github.com/llsteer/llsteer/loader"
)

// A bundle is a level bundle method (Lemaréchal, Nemirovskii and Nesterov, New variants of
// bundle methods, 1995), which is Polyak's step with a memory: docs/steering.md, section 9.
//
// Parameters are measured in units of their learning rate, so that one vector's scale is like
// another's.
type bundle struct {
	lr     []float64 // of each layer's parameters
	target *float64  // of the total loss; nil: none

	Start  float64     // loss of the first evaluation
	At     []float64   // the best point
	Loss   float64     // there
	Move   []float64   // the step to there; 0 before the first, and after an evaluation that was no better
	Radius float64     // most that a step is long
	Reach  float64     // share of the way from Loss to the goal that a step is to go
	Trials int         // evaluations since the best one
	Cuts   []halfspace // of the last evaluations, oldest first
	Steep  []float64   // squared gradients, added up over all evaluations
}

// A halfspace is where a loss's tangent, Offset + Gradient·x, is low enough.
type halfspace struct {
	Gradient []float64
	Offset   float64
}

const (
	bundleCuts   = 10
	bundleBeyond = 0.02 // of the start's loss, that the goal is beyond the target
	bundleBelow  = 0.25 // of the start's loss, that without a target it is below 0
	bundleAhead  = 0.2  // of the last step, that the next one begins ahead of the best point
	bundleGrowth = 1.5  // of a step's length over that of the one before, at most
	bundleTrials = 12   // evaluations that are no better; the next one is taken as it is
)

// newBundle makes one that goes to a total loss.
func newBundle(lr []float64, target *float64) *bundle {
	return &bundle{lr: lr, target: target, Reach: 1, Radius: math.MaxFloat64}
}

func (b *bundle) accepts(params, gradient []loader.Parameters, loss float64) bool {
	x, g := b.flat(params, -1), b.flat(gradient, 1)
	if b.At == nil {
		b.Start, b.Steep = loss, make([]float64, len(x))
	}
	for i := range g {
		b.Steep[i] += g[i] * g[i]
	}
	b.Cuts = append(b.Cuts, halfspace{g, loss - dot(g, x)})
	b.Cuts = b.Cuts[max(0, len(b.Cuts)-bundleCuts):]
	if b.At == nil {
		b.At, b.Loss, b.Move = x, loss, make([]float64, len(x))
		return true
	}
	if loss >= b.Loss && b.Trials < bundleTrials {
		b.Trials++
		b.Reach /= 2
		clear(b.Move)
		return false
	}
	if b.Trials == 0 {
		b.Reach = min(1, 2*b.Reach)
	}
	b.At, b.Loss, b.Move, b.Trials = x, loss, minus(x, b.At), 0
	b.Radius = bundleGrowth * length(b.Move)
	return true
}

func (b *bundle) retreat(params []loader.Parameters) { b.step(params) }

func (b *bundle) step(params []loader.Parameters) {
	to := slices.Clone(b.At)
	axpy(bundleAhead, b.Move, to)
	b.approach(to)
	move := minus(to, b.At)
	if n := length(move); n > b.Radius {
		scale(move, b.Radius/n)
	}
	k := 0
	for i, p := range params {
		for _, row := range rows(p) {
			for n := range row {
				row[n] = float32((b.At[k] + move[k]) * b.lr[i])
				k++
			}
		}
	}
}

// level is the loss to which a step is to go. The goal is a little beyond the target, which else
// would be approached and not met, or without one below 0, the least of most losses; and as
// much below what is beyond these already.
func (b *bundle) level() float64 {
	target, beyond := 0.0, bundleBelow
	if b.target != nil {
		target, beyond = *b.target, bundleBeyond
	}
	goal := min(target, b.Loss) - beyond*math.Abs(b.Start)
	return b.Loss - b.Reach*(b.Loss-goal)
}

// approach moves x to the nearest point in all of the bundle's half-spaces, or towards them if
// they have none in common. That is x − Σ λᵢ D gᵢ, D the inverse of the metric, with λ ≥ 0
// found by Hildreth's method: x goes to the border of one half-space after the other.
func (b *bundle) approach(x []float64) {
	const sweeps = 200
	n, level, inverse := len(b.Cuts), b.level(), b.inverseMetric()
	moves, excess, products := make([][]float64, n), make([]float64, n), make([][]float64, n)
	for i, c := range b.Cuts {
		moves[i] = make([]float64, len(x))
		for k, d := range inverse {
			moves[i][k] = d * c.Gradient[k]
		}
		// A tangent of a convex loss is nowhere above it. This one is not convex everywhere: a
		// tangent that is above it at the best point is lowered.
		above := c.Offset + dot(c.Gradient, b.At) - b.Loss
		excess[i] = c.Offset + dot(c.Gradient, x) - level - max(0, above)
	}
	for i := range products {
		for _, c := range b.Cuts {
			products[i] = append(products[i], dot(c.Gradient, moves[i]))
		}
	}
	lambda := make([]float64, n)
	for range sweeps {
		for i, p := range products {
			if p[i] > 0 {
				lambda[i] = max(0, lambda[i]+(excess[i]-dot(p, lambda))/p[i])
			}
		}
	}
	for i := range lambda {
		axpy(-lambda[i], moves[i], x)
	}
}

// inverseMetric is how far each number moves for its gradient: less where the loss was steep,
// by a power between that of the plain gradient (0) and that of Adam's steps (1/2).
func (b *bundle) inverseMetric() []float64 {
	const power, least = 0.375, 0.01
	mean := 0.0
	for _, s := range b.Steep {
		mean += s / float64(len(b.Steep))
	}
	inverse := make([]float64, len(b.Steep))
	for i, s := range b.Steep {
		if mean > 0 {
			inverse[i] = math.Pow(s/mean+least, -power)
		}
	}
	return inverse
}

// flat are the rows of parameters one after the other, in units of lr.
func (b *bundle) flat(params []loader.Parameters, exponent float64) []float64 {
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

func (b *bundle) fits(widths []int) bool {
	n := 0
	for _, width := range widths {
		n += width
	}
	all := [][]float64{b.At, b.Move, b.Steep}
	for _, c := range b.Cuts {
		all = append(all, c.Gradient)
	}
	return len(b.Cuts) > 0 && !slices.ContainsFunc(all, func(x []float64) bool { return len(x) != n })
}

func minus(a, b []float64) []float64 {
	d := make([]float64, len(a))
	for i := range a {
		d[i] = a[i] - b[i]
	}
	return d
}
