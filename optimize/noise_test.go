package optimize

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// Draws are standard normal, the seed's, and have nothing to do with those of another step, draw,
// completion or layer.
func TestSeededDraws(t *testing.T) {
	const width = 1 << 16
	at := drawing{iter: 3, draw: 1, completion: 2, params: 4}
	draws := [][]float64{seeded(7)(at, width)}
	require.Equal(t, draws[0], seeded(7)(at, width), "the same again")
	for _, other := range []drawing{
		{4, 1, 2, 4}, {2, 1, 2, 4}, {3, 0, 2, 4}, {3, 1, 3, 4}, {3, 1, 2, 5}, {1, 3, 2, 4}, {3, 1, 4, 2},
	} {
		draws = append(draws, seeded(7)(other, width))
	}
	draws = append(draws, seeded(8)(at, width))
	const deviations = 6 // of each mean below from what it estimates
	mean := func(f func(k int) float64) float64 {
		sum := 0.0
		for k := range width {
			sum += f(k)
		}
		return sum / width
	}
	for i, a := range draws {
		near(t, 0, mean(func(k int) float64 { return a[k] }), deviations*math.Sqrt(1.0/width), "mean")
		near(t, 1, mean(func(k int) float64 { return a[k] * a[k] }), deviations*math.Sqrt(2.0/width), "variance")
		near(t, 3, mean(func(k int) float64 { return math.Pow(a[k], 4) }), deviations*math.Sqrt(96.0/width), "fourth moment")
		for _, b := range draws[:i] {
			near(t, 0, mean(func(k int) float64 { return a[k] * b[k] }), deviations*math.Sqrt(1.0/width), "covariance")
		}
	}
}

// Where the gradient at v = 0 is 0 nothing is projected out.
func TestNoiseWithoutGradient(t *testing.T) {
	job := &Job{Options: DefaultOptions()}
	job.NoiseScale = ptr(0.5)
	n := []float64{1, -2, 4}
	z := &noise{job: job, draw: func(drawing, int) []float64 { return slices.Clone(n) }, tangents: [][][]float64{{{0, 0, 0}, {0, 2, 0}}}}
	require.Equal(t, []float64{0.5, -1, 2}, z.of(drawing{params: 0}, 0, 3))
	require.Equal(t, []float64{0.5, 0, 2}, z.of(drawing{params: 1}, 0, 3))
}

// Clamp and ablation have no gradient at v = 0, and the refusal says what to do.
func TestTangentNoiseOfClamps(t *testing.T) {
	for _, c := range []float64{0, 1} {
		job, m := scripted()
		job.VectorClamp, job.NoiseScale = ptr(c), ptr(0.1)
		_, err := newSetup(t.Context(), m, job)
		require.Equal(t, "do_tangent_space_noise: false, or do_antipgd", inputError(t, err).Hint)
		for _, follow := range []func(*Job){
			func(j *Job) { j.DoTangentSpaceNoise = false },
			func(j *Job) { j.DoAntipgd = true },
		} {
			other := *job
			follow(&other)
			require.NoError(t, other.Validate())
		}
	}
}
