package ggmlsteer

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDivergenceOfDistributions(t *testing.T) {
	log := func(p ...float64) (logits []float32) {
		for _, p := range p {
			logits = append(logits, float32(math.Log(p)+3)) // softmax does not see the 3
		}
		return logits
	}
	const tolerance = 1e-6 // logits are float32
	near(t, 0.5*math.Log(2)+0.5*math.Log(2.0/3), divergence(log(0.5, 0.5), log(0.25, 0.75)), tolerance, "two tokens")
	near(t, math.Log(4), divergence(log(1, 0), log(0.25, 0.75)), tolerance, "one is certain")
	require.Zero(t, divergence(log(0.1, 0.9), log(0.1, 0.9)))
}

// More tokens than a chunk: the divergence is that of all logits of two texts.
func TestDivergence(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		random := rand.New(rand.NewPCG(23, 23))
		tokens := randomTokens(random, divergenceChunk+9, f.Vocabulary)
		options := DecoderOptions{Context: len(tokens), Precision: F32}
		steered, unsteered := newDecoder(t, m, options), newDecoder(t, m, options)
		same, err := Divergence(context.Background(), steered, unsteered, tokens)
		require.NoError(t, err)
		require.Zero(t, same)

		active := everyKind(random, m)
		active[0].Steering.PromptOnly = true
		require.NoError(t, steered.Steer(active...))
		found, err := Divergence(context.Background(), steered, unsteered, tokens)
		require.NoError(t, err)
		expected := 0.0
		p, q := textLogits(t, steered, tokens, len(tokens)), textLogits(t, unsteered, tokens, len(tokens))
		for i := range tokens {
			for token := range p[i] {
				log := probOf(p[i], Token(token), 1).Log
				expected += math.Exp(log) * (log - probOf(q[i], Token(token), 1).Log) / float64(len(tokens))
			}
		}
		require.Greater(t, expected, 0.1)
		near(t, expected, found, logProbTolerance, "divergence")
		back, err := Divergence(context.Background(), unsteered, steered, tokens)
		require.NoError(t, err)
		require.Greater(t, math.Abs(back-found), 1e-3, "it is not symmetric")

		_, err = Divergence(context.Background(), steered, unsteered, nil)
		inputError(t, err, "no tokens")
	})
}

// A decoder's probabilities are the model's, text after text.
func TestDecoderLogprobs(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		random := rand.New(rand.NewPCG(24, 24))
		active := everyKind(random, m)
		active[0].Steering.PromptOnly = true
		d := newDecoder(t, m, DecoderOptions{Context: textLength, Precision: F32})
		require.NoError(t, d.Steer(active...))
		for _, length := range []int{textLength, 2, 7} {
			tokens := randomTokens(random, length, f.Vocabulary)
			found, err := d.Logprobs(context.Background(), tokens, length/2, 0.7)
			require.NoError(t, err)
			rows := textLogits(t, d, tokens, length/2)
			require.Len(t, found, length-length/2)
			for i, p := range found {
				near(t, probOf(rows[length/2-1+i], tokens[length/2+i], 0.7).Log, p.Log, logProbTolerance, "token %d of %d", i, length)
			}
		}
		_, err := d.Logprobs(context.Background(), randomTokens(random, 3, f.Vocabulary), 3, 1)
		inputError(t, err, "at least one")
	})
}
