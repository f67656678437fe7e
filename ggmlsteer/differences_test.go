package ggmlsteer

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// differenceTolerance is of the gradient's norm. The loss is a float32 network's: rounding
// of about 1e-6 nats over steps of 1e-2 leaves 1e-4.
const differenceTolerance = 1e-3

// slope is the derivative of f at 0 by differences of fourth order; f is float64 as far as it can be.
func slope(f func(step float64) float64, h float64) float64 {
	return (8*(f(h)-f(-h)) - (f(2*h) - f(-2*h))) / (12 * h)
}

// Gradients are the slopes of the losses: along the gradient itself, in which every
// component counts, and along random directions, in which wrong components count.
func TestGradientsAgainstDifferences(t *testing.T) {
	const h = 1e-2 // along a direction of norm 1; the vectors have norm 2
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		most := 0.0
		for _, name := range []string{"layer_0", "layer_1", "middle", "last", "all", "middle_strengths", "layer_0_and_middle_affine", "middle_two_vectors", "middle_satisfice"} {
			t.Run(name, func(t *testing.T) {
				c := f.caseNamed(t, name)
				s, at := c.session(t, m, f)
				gradient := c.gradientAt(t, s, f, at)
				norm := normOf(gradient)
				require.True(t, norm > 0.01, "the gradient is %v: nothing to compare", norm)
				random := rand.New(rand.NewPCG(2, 2))
				for i, direction := range [][]Operation{gradient, likeAtRandom(random, gradient), likeAtRandom(random, gradient)} {
					length := normOf(direction)
					found := slope(func(step float64) float64 {
						probs, err := s.Forward(context.Background(), moved(at, direction, step/length))
						require.NoError(t, err)
						_, objective, _ := c.evaluate(f, probs)
						return objective
					}, h)
					expected := dot(gradient, direction) / length
					near(t, expected, found, differenceTolerance*norm, "slope in direction %d, of a gradient of norm %v", i, norm)
					most = max(most, math.Abs(expected-found)/norm)
				}
			})
		}
		t.Logf("largest error: %.1e of the gradient's norm", most)
	})
}

// rowsOf are all the parameters of operations.
func rowsOf(ops []Operation) (rows [][]float32) {
	for _, o := range ops {
		rows = append(rows, slices.Concat(o.Vectors, o.Left, o.Right)...)
	}
	return rows
}

// each is operations of the form of ops, with every row made of ops's and of like's.
func each(ops, like []Operation, row func(a, b []float32) []float32) []Operation {
	made := make([]Operation, len(ops))
	rows := func(a, b [][]float32) (made [][]float32) {
		for i := range a {
			made = append(made, row(a[i], b[i]))
		}
		return made
	}
	for i, o := range ops {
		made[i] = Operation{Vectors: rows(o.Vectors, like[i].Vectors), Left: rows(o.Left, like[i].Left), Right: rows(o.Right, like[i].Right)}
	}
	return made
}

// moved is ops + step·direction.
func moved(ops, direction []Operation, step float64) []Operation {
	return each(ops, direction, func(a, b []float32) []float32 {
		sum := make([]float32, len(a))
		for i := range a {
			sum[i] = float32(float64(a[i]) + step*float64(b[i]))
		}
		return sum
	})
}

func likeAtRandom(random *rand.Rand, ops []Operation) []Operation {
	return each(ops, ops, func(a, _ []float32) []float32 { return randomVector(random, len(a), 1) })
}

func dot(a, b []Operation) float64 {
	sum := 0.0
	other := slices.Concat(rowsOf(b)...)
	for i, x := range slices.Concat(rowsOf(a)...) {
		sum += float64(x) * float64(other[i])
	}
	return sum
}

func normOf(ops []Operation) float64 { return math.Sqrt(dot(ops, ops)) }
