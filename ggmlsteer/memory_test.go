package ggmlsteer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// evaluated is what a session finds at ops, with weights that differ from target to target.
func evaluated(t *testing.T, m *Model, o SessionOptions, ops []Operation, sequences ...Sequence) (probs [][]Prob, gradient []Operation) {
	t.Helper()
	s, err := m.NewSession(o, sequences)
	require.NoError(t, err)
	defer s.Close()
	probs, err = s.Forward(context.Background(), ops)
	require.NoError(t, err)
	weights := make([][]float64, len(probs))
	for i := range probs {
		for j := range probs[i] {
			weights[i] = append(weights[i], 1+0.5*float64(j%5))
		}
	}
	gradient, err = s.Backward(context.Background(), weights)
	require.NoError(t, err)
	return probs, gradient
}

// randomSequence has factors of 1, for vectors and for the rows of a matrix.
func randomSequence(random *rand.Rand, m *Model, n, prompt, rank int) Sequence {
	return Sequence{Tokens: randomTokens(random, n, m.info.Vocab), Prompt: prompt, Vector: [][]float32{ones(n)}, Matrix: slices.Repeat([][]float32{ones(n)}, rank)}
}

// With less memory, sequences that share a long prompt stay in one graph, whose activations are
// computed again for the backward pass and whose logits are there for fewer tokens at a time:
// the same bits. Then they become several graphs. The 650 tokens take attention in chunks.
func TestLittleMemory(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		random := rand.New(rand.NewPCG(17, 17))
		row := func() [][]float32 { return [][]float32{randomVector(random, f.Width, 1)} }
		first := randomSequence(random, m, 250, 150, 1)
		sequences := []Sequence{first}
		for range 4 {
			next := first
			next.Tokens = slices.Concat(first.Tokens[:150], randomTokens(random, 100, f.Vocabulary))
			sequences = append(sequences, next)
		}
		for _, layers := range [][]int{{0}, {1, f.Layers - 1}} {
			t.Run(fmt.Sprintf("layers %v", layers), func(t *testing.T) {
				var ops []Operation
				for range layers {
					ops = append(ops, Operation{Vectors: row(), Left: row(), Right: row()})
				}
				o := SessionOptions{Layers: layers, Vectors: 1, Rank: 1, Coldness: 1}
				probs, gradient := evaluated(t, m, o, ops, sequences...)
				whole := 0
				for o.Memory = 1e9; o.Memory > 1; o.Memory /= 2.5 {
					s, err := m.NewSession(o, sequences)
					require.NoError(t, err)
					tokens := s.BatchTokens()
					require.NoError(t, s.Close())
					if tokens > 150+5*99 {
						break
					}
					found, again := evaluated(t, m, o, ops, sequences...)
					require.Equal(t, probs, found, "with %v bytes", o.Memory)
					require.Equal(t, gradient, again, "with %v bytes", o.Memory)
					whole++
				}
				require.Greater(t, whole, 2)

				found, again := evaluated(t, m, o, ops, sequences...)
				nearProbs(t, probs, found)
				nearVector(t, slices.Concat(rowsOf(gradient)...), slices.Concat(rowsOf(again)...), gradientTolerance, "gradient")

				// one sequence is always one graph
				probs, gradient = evaluated(t, m, SessionOptions{Layers: layers, Vectors: 1, Rank: 1, Coldness: 1}, ops, first)
				o.Memory = 1
				found, again = evaluated(t, m, o, ops, first)
				require.Equal(t, probs, found)
				require.Equal(t, gradient, again)
			})
		}
	})
}

func nearProbs(t *testing.T, expected, found [][]Prob) {
	t.Helper()
	for i := range expected {
		require.Len(t, found[i], len(expected[i]))
		for j := range expected[i] {
			near(t, expected[i][j].Log, found[i][j].Log, logProbTolerance, "sequence %d, target %d", i, j)
		}
	}
}

// requireSumOfParts: a session over sequences has the probabilities that each has alone, and its
// gradient is the sum of theirs.
func requireSumOfParts(t *testing.T, m *Model, o SessionOptions, ops []Operation, sequences []Sequence) {
	t.Helper()
	together, gradient := evaluated(t, m, o, ops, sequences...)
	sum := each(gradient, gradient, func(a, _ []float32) []float32 { return make([]float32, len(a)) })
	for i, s := range sequences {
		alone, of := evaluated(t, m, o, ops, s)
		nearProbs(t, alone, together[i:i+1])
		sum = moved(sum, of, 1)
	}
	nearVector(t, slices.Concat(rowsOf(sum)...), slices.Concat(rowsOf(gradient)...), gradientTolerance, "the gradient of the sum")
}

// Attention in chunks is attention: texts in a batch that is long have the probabilities and the
// gradients that each has alone.
func TestLongBatches(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		random := rand.New(rand.NewPCG(19, 19))
		ops := []Operation{{Vectors: [][]float32{randomVector(random, f.Width, 1)}}}
		o := SessionOptions{Layers: []int{f.Layers / 2}, Vectors: 1, Coldness: 1}
		var sequences []Sequence
		for range 6 {
			sequences = append(sequences, randomSequence(random, m, 200, 150, 0))
		}
		requireSumOfParts(t, m, o, ops, sequences)
	})
}

// A long text has the log-probabilities that the decoder gives it, whose attention is whole,
// and its gradient is their slope.
func TestLongText(t *testing.T) {
	m := slowModel(t)
	random := rand.New(rand.NewPCG(20, 20))
	vector := randomVector(random, m.info.Embd, 1)
	ops := []Operation{{Vectors: [][]float32{vector}}}
	text := randomSequence(random, m, 1200, 1100, 0)
	s, err := m.NewSession(SessionOptions{Layers: []int{1}, Vectors: 1, Coldness: 1}, []Sequence{text})
	require.NoError(t, err)
	defer s.Close()
	probs, err := s.Forward(context.Background(), ops)
	require.NoError(t, err)
	decoded, err := m.Logprobs(context.Background(), text.Tokens, text.Prompt, 1, F32, Active{Steering: added(map[int][]float32{1: vector}), Strength: 1})
	require.NoError(t, err)
	nearProbs(t, [][]Prob{decoded}, probs)

	gradient, err := s.Backward(context.Background(), [][]float64{slices.Repeat([]float64{1}, 100)})
	require.NoError(t, err)
	norm := normOf(gradient)
	found := slope(func(step float64) float64 {
		probs, err := s.Forward(context.Background(), moved(ops, gradient, step/norm))
		require.NoError(t, err)
		sum := 0.0
		for _, p := range probs[0] {
			sum += p.Log
		}
		return sum
	}, 1e-2)
	near(t, norm, found, differenceTolerance*norm, "slope along the gradient")
}
