package models

import (
	"context"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/stretchr/testify/require"
)

// What 16 bits in products with weights cost on real models: in the probabilities, in the
// gradient and in the number of steps.
func TestPrecisions(t *testing.T) {
	const (
		cosine    = 0.9995
		error     = 0.03 // of the gradient, in its norm
		nats      = 0.03 // of a token's log-probability, root mean square
		prompt    = "A recipe for pancakes. First of all, take a large bowl, and put into it"
		completed = " 1 cup of flour, 2 eggs and a little salt, and mix them well with a fork."
	)
	for _, name := range []string{"gemma3-270m", "smollm2-135m"} {
		m, err := ggmlsteer.Open(model(t, name+".gguf"), ggmlsteer.Options{})
		require.NoError(t, err)
		defer m.Close()
		before, err := m.Tokenize(prompt, false)
		require.NoError(t, err)
		tokens, err := m.Tokenize(prompt+completed, false)
		require.NoError(t, err)
		factors := make([]float32, len(tokens))
		for i := range factors {
			factors[i] = 1
		}
		sequences := []ggmlsteer.Sequence{{Tokens: tokens, Prompt: len(before), Vector: [][]float32{factors}}}
		for _, layer := range []int{0, m.Info().Layers / 2, m.Info().Layers - 1} {
			vector := make([]float32, m.Info().Embd)
			random := rand.New(rand.NewPCG(1, uint64(layer)))
			for i := range vector {
				vector[i] = 0.1 * float32(random.NormFloat64())
			}
			evaluate := func(precision ggmlsteer.Precision) (logs []float64, gradient []float32) {
				s, err := m.NewSession(ggmlsteer.SessionOptions{Layers: []int{layer}, Vectors: 1, Coldness: 1, Precision: precision}, sequences)
				require.NoError(t, err)
				defer s.Close()
				probs, err := s.Forward(context.Background(), []ggmlsteer.Operation{{Vectors: [][]float32{vector}}})
				require.NoError(t, err)
				weights := make([]float64, len(probs[0]))
				for i, p := range probs[0] {
					logs = append(logs, p.Log)
					weights[i] = 1
				}
				operations, err := s.Backward(context.Background(), [][]float64{weights})
				require.NoError(t, err)
				return logs, operations[0].Vectors[0]
			}
			logs, gradient := evaluate(ggmlsteer.F32)
			rounded, other := evaluate(ggmlsteer.BF16)
			var square, aa, bb, ab, dd float64
			for i := range logs {
				square += (logs[i] - rounded[i]) * (logs[i] - rounded[i])
			}
			for i := range gradient {
				a, b := float64(gradient[i]), float64(other[i])
				aa, bb, ab, dd = aa+a*a, bb+b*b, ab+a*b, dd+(a-b)*(a-b)
			}
			rms, cos, off := math.Sqrt(square/float64(len(logs))), ab/math.Sqrt(aa*bb), math.Sqrt(dd/aa)
			t.Logf("%s layer %d: log-probabilities %.1e nats apart, gradients %.2e, cosine 1 - %.1e", name, layer, rms, off, 1-cos)
			require.LessOrEqual(t, rms, nats)
			require.GreaterOrEqual(t, cos, cosine)
			require.LessOrEqual(t, off, error)
			require.Positive(t, dd, "the precisions are the same")
		}
	}

	// the tutorial's job
	path := model(t, "gemma3-270m.gguf")
	out := filepath.Join(t.TempDir(), "out.gguf")
	exact := llsteer[report](t, "optimize", "-m", path, "recipe.yaml", "-o", out, "--lr", "1.5")
	fast := llsteer[report](t, "optimize", "-m", path, "recipe.yaml", "-o", out, "--lr", "1.5", "--precision", "bf16")
	t.Logf("%d steps in f32, %d in bf16", exact.Iters, fast.Iters)
	require.Equal(t, "target_loss", fast.Stop)
	require.InDelta(t, exact.Iters, fast.Iters, 1)
}
