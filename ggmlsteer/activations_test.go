package ggmlsteer

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

func everyLayer(m *Model) []int {
	layers := make([]int, m.Info().Layers)
	for l := range layers {
		layers[l] = l
	}
	return layers
}

// A vector at a layer moves what its block reads by itself, at the tokens that are steered; nothing
// below it, and nothing of the tokens before.
func TestSteeredActivations(t *testing.T) {
	const from, strength = 3, -0.5 // a power of two: the product with it is exact
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		layer := f.Layers / 2
		v := randomVector(rand.New(rand.NewPCG(3, 1)), f.Width, 2)
		tokens := f.ResidualNorms.Tokens
		require.Greater(t, len(tokens), from)
		activations := func(active ...Active) [][][]float32 {
			x, err := m.Activations(context.Background(), tokens, everyLayer(m), active...)
			require.NoError(t, err)
			return x
		}
		steering := added(map[int][]float32{layer: v})
		unsteered := activations()
		x := activations(Active{Steering: steering, Strength: strength, From: from})
		require.Equal(t, unsteered[:layer], x[:layer], "layers below")
		for l := layer; l < f.Layers; l++ {
			require.Equal(t, unsteered[l][:from], x[l][:from], "layer %d, tokens that are not steered", l)
			for i := from; i < len(tokens); i++ {
				require.NotEqual(t, unsteered[l][i], x[l][i], "layer %d, token %d", l, i)
			}
		}
		for i := from; i < len(tokens); i++ {
			expected := make([]float32, f.Width)
			for j := range expected {
				expected[j] = unsteered[layer][i][j] + float32(strength*v[j])
			}
			require.Equal(t, expected, x[layer][i], "token %d", i)
		}

		// one layer alone shows the same; the steering of a layer that is not shown counts, too
		alone, err := m.Activations(context.Background(), tokens, []int{f.Layers - 1}, Active{Steering: steering, Strength: strength, From: from})
		require.NoError(t, err)
		require.Equal(t, x[f.Layers-1], alone[0])

		// the text is a prompt, and the output of the last block is no layer's input
		whole := activations(Active{Steering: steering, Strength: strength})
		require.Equal(t, whole, activations(Active{Steering: &loader.Steering{Kind: loader.Add, Layers: steering.Layers, Params: steering.Params, PromptOnly: true}, Strength: strength}))
		require.Equal(t, whole, activations(Active{Steering: steering, Strength: strength, Phase: PromptTokens}))
		require.Equal(t, unsteered, activations(Active{Steering: steering, Strength: strength, Phase: GeneratedTokens}))
		require.Equal(t, unsteered, activations(Active{Steering: added(map[int][]float32{f.Layers: v}), Strength: strength}))
	})
}
