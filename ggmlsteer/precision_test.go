package ggmlsteer

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// In precision BF16 an operand of a product is off by 1.7e-3 of its norm in bfloat16, and by 2e-4 in
// fixed point. Through the demo model's 6 blocks, forward and back, that was 2e-2 and 2e-3 of a gradient.
func TestBF16(t *testing.T) {
	const off = 3e-2
	m, err := Open("../testdata/demo/model.gguf", Options{})
	require.NoError(t, err)
	defer m.Close()
	random := rand.New(rand.NewPCG(16, 16))
	prompt := randomTokens(random, 30, m.info.Vocab)
	var sequences []Sequence
	for range 2 {
		tokens := append(slices.Clone(prompt), randomTokens(random, 9, m.info.Vocab)...)
		sequences = append(sequences, Sequence{Tokens: tokens, Prompt: len(prompt), Vector: [][]float32{ones(len(tokens))}, Matrix: [][]float32{ones(len(tokens))}})
	}
	row := func() [][]float32 { return [][]float32{randomVector(random, m.info.Embd, 0.3)} }
	ops := []Operation{{Vectors: row(), Left: row(), Right: row()}}
	evaluate := func(precision Precision) (probs [][]Prob, gradient [][]float32) {
		s, err := m.NewSession(SessionOptions{Layers: []int{1}, Vectors: 1, Rank: 1, Coldness: 1, Precision: precision}, sequences)
		require.NoError(t, err)
		defer s.Close()
		probs, err = s.Forward(context.Background(), ops)
		require.NoError(t, err)
		weights := [][]float64{slices.Repeat([]float64{1}, 9), slices.Repeat([]float64{-1}, 9)}
		found, err := s.Backward(context.Background(), weights)
		require.NoError(t, err)
		return probs, rowsOf(found)
	}
	probs, gradient := evaluate(F32)
	rounded, other := evaluate(BF16)
	square, n := 0.0, 0
	for i := range probs {
		for j := range probs[i] {
			square += math.Pow(probs[i][j].Log-rounded[i][j].Log, 2)
			n++
		}
	}
	rms := math.Sqrt(square / float64(n))
	t.Logf("log-probabilities are %.1e nats apart", rms)
	require.LessOrEqual(t, rms, off)
	require.Positive(t, rms, "the precisions are the same")
	for i := range gradient {
		apart := distance(gradient[i], other[i]) / distance(gradient[i], make([]float32, m.info.Embd))
		t.Logf("row %d of the gradient is off by %.1e", i, apart)
		require.LessOrEqual(t, apart, off)
		require.Positive(t, apart)
	}

	// what is decoded is what a session computes, in this precision, too
	for i, s := range sequences {
		steering := &loader.Steering{Kind: loader.Affine, Layers: []int{1}, Params: []loader.Parameters{{Vector: ops[0].Vectors[0], Left: ops[0].Left, Right: ops[0].Right}}}
		decoded, err := m.Logprobs(context.Background(), s.Tokens, s.Prompt, 1, BF16, Active{Steering: steering, Strength: 1})
		require.NoError(t, err)
		for j, p := range decoded {
			near(t, rounded[i][j].Log, p.Log, off, "log p of target %d of sequence %d", j, i)
		}
	}
	_, err = m.NewSession(SessionOptions{Coldness: 1, Precision: 7}, sequences)
	inputError(t, err, "not in precision 7")
}
