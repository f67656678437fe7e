package optimize

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/stretchr/testify/require"
)

// checkable is a job on a fake model, whose residual stream has norms of about 1.
func checkable(t *testing.T, name string) (*Job, *fakeModel) {
	t.Helper()
	m := newFake()
	job := referenceCaseNamed(t, name).job(t)
	layers, err := job.Layers.Resolve(m.Info().Layers)
	require.NoError(t, err)
	for range layers {
		norms := make([][]float64, len(reference.Sequences))
		for i, s := range reference.Sequences {
			norms[i] = slices.Repeat([]float64{1}, len(s.Tokens))
		}
		m.streams = append(m.streams, norms)
	}
	return job, m
}

// The error of differences on the fake model, which computes in float64: vectors
// are rounded to float32, by 2⁻²⁴ of components of about 1, and the shortest step is 5e-4.
const checkedTolerance = 1.2e-4

// The right gradient passes in every variant of the objective.
func TestCheckPasses(t *testing.T) {
	for _, c := range reference.Cases {
		t.Run(c.Name, func(t *testing.T) {
			job, m := checkable(t, c.Name)
			var order []string
			checked, err := check(context.Background(), m, job, func(layer string, _ LayerCheck) { order = append(order, layer) })
			require.NoError(t, err)
			require.True(t, checked.OK())
			require.Equal(t, job.layerKeys(c.Layers), order)
			for i, key := range order {
				l := checked.Layers[key]
				require.True(t, l.RelativeError <= checkedTolerance, "layer %s: %v", key, l.RelativeError)
				if len(c.Layers) == 1 || c.Shared { // no regularizer
					near(t, norm32(c.Gradient[i]), l.GradientNorm, gradientTolerance*norm32(c.Gradient[i]), "norm")
				}
			}
			require.True(t, checked.SecondsPerStep > 0)
			require.True(t, m.session.closed)
		})
	}
}

func norm32(v []float64) float64 { return math.Sqrt(dot(v, v)) }

// A gradient that is wrong in whatever way fails.
func TestCheckFindsDefects(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(v []float32)
		least float64 // the relative error
	}{
		{"a factor", func(v []float32) { multiply(v, 1.01) }, 5e-3},
		{"the other sign", func(v []float32) { multiply(v, -1) }, 1},
		{"zero", func(v []float32) { multiply(v, 0) }, 0.5},
		{"ten times too small", func(v []float32) { multiply(v, 0.1) }, 0.5},
		{"a component that is missing", func(v []float32) { v[0] = 0 }, 5e-3},
		{"the wrong order", slices.Reverse[[]float32], 5e-3},
	} {
		t.Run(c.name, func(t *testing.T) {
			job, m := checkable(t, "two layers")
			m.backwardHook = func(_ int, _ [][]float64, gradients []ggmlsteer.Operation) error {
				c.spoil(gradients[1].Vectors[0])
				return nil
			}
			checked, err := check(context.Background(), m, job, nil)
			require.NoError(t, err)
			require.True(t, checked.Layers["0"].RelativeError <= checkedTolerance)
			require.True(t, checked.Layers["1"].RelativeError >= c.least, "relative error %v", checked.Layers["1"].RelativeError)
			require.False(t, checked.OK())
		})
	}
}

func multiply(v []float32, factor float32) {
	for i := range v {
		v[i] *= factor
	}
}

func TestCheckedOK(t *testing.T) {
	at := func(errors ...float64) *Checked {
		c := &Checked{Layers: map[string]LayerCheck{}, Tolerance: CheckTolerance}
		for i, e := range errors {
			c.Layers[string(rune('0'+i))] = LayerCheck{RelativeError: e}
		}
		return c
	}
	require.True(t, at(CheckTolerance, 0).OK())
	require.False(t, at(0, 1.0001*CheckTolerance).OK())
	require.False(t, at(0, math.NaN()).OK())
	require.False(t, at().OK(), "nothing was checked")
}

// What cannot be checked is said, and not passed.
func TestCheckRefuses(t *testing.T) {
	t.Run("a gradient that is NaN", func(t *testing.T) {
		job, m := checkable(t, "two layers")
		m.backwardHook = func(_ int, _ [][]float64, gradients []ggmlsteer.Operation) error {
			gradients[0].Vectors[0][1] = float32(math.NaN())
			return nil
		}
		_, err := check(context.Background(), m, job, nil)
		require.ErrorContains(t, err, "layer 0: the gradient is not finite")
	})
	t.Run("a loss that is NaN", func(t *testing.T) {
		job, m := checkable(t, "two layers")
		m.forwardHook = func(n int, probs [][]ggmlsteer.Prob) error {
			if n == 20 {
				probs[0][0].Log, probs[0][0].LogComplement = math.NaN(), math.NaN()
			}
			return nil
		}
		_, err := check(context.Background(), m, job, nil)
		var diverged *notFinite
		require.ErrorAs(t, err, &diverged)
	})
	t.Run("losses that do not depend on the vector", func(t *testing.T) {
		job, m := checkable(t, "two layers")
		for i := range job.Examples {
			job.Examples[i].Token = span(t, "-1") // no target comes after it
		}
		_, err := check(context.Background(), m, job, nil)
		require.Contains(t, inputError(t, err).Message, "do not depend")
	})
	t.Run("a job that Run refuses", func(t *testing.T) {
		job, m := checkable(t, "two layers")
		job.Layers.List = []int{7}
		_, err := check(context.Background(), m, job, nil)
		inputError(t, err)
	})
	t.Run("an interrupt", func(t *testing.T) {
		job, m := checkable(t, "two layers")
		m.forwardHook = func(int, [][]ggmlsteer.Prob) error { return errors.New("interrupted") }
		_, err := check(context.Background(), m, job, nil)
		require.ErrorContains(t, err, "interrupted")
		require.True(t, m.session.closed)
	})
}
