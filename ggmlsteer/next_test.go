package ggmlsteer

import (
	"context"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// Side by side, steered or not, each prompt has the logits that it has alone.
func TestNextLogits(t *testing.T) {
	m := openModel(t, "../testdata/demo/model.gguf")
	vector := make([]float32, m.Info().Embd)
	for i := range vector {
		vector[i] = float32(i%7) / 4
	}
	s := &loader.Steering{Kind: loader.Add, Layers: []int{2}, Embd: len(vector), Params: []loader.Parameters{{Vector: vector}}}
	var prompts [][]Token
	for _, text := range []string{"The old king looked at the soldiers", "In", "To save your document,"} {
		tokens, err := m.Tokenize(text, false)
		require.NoError(t, err)
		prompts = append(prompts, tokens)
	}
	d, err := m.NewDecoder(DecoderOptions{Context: 32, Sequences: len(prompts), Precision: F32})
	require.NoError(t, err)
	defer d.Close()
	var plain [][]float32
	for _, active := range [][]Active{nil, {{Steering: s, Strength: 1}}} {
		require.NoError(t, d.Steer(active...))
		together, err := d.NextLogits(context.Background(), prompts)
		require.NoError(t, err)
		require.Len(t, together, len(prompts))
		for i, prompt := range prompts {
			alone, err := d.Logits(context.Background(), prompt, len(prompt))
			require.NoError(t, err)
			// sums of the same float32 numbers in another order, of logits of size 10
			require.InDeltaSlice(t, alone[len(alone)-1], together[i], 1e-4)
		}
		if active == nil {
			plain = together
		} else {
			require.NotEqual(t, plain, together)
		}
	}
	_, err = d.NextLogits(context.Background(), [][]Token{{}})
	require.Error(t, err)
	none, err := d.NextLogits(context.Background(), nil)
	require.NoError(t, err)
	require.Empty(t, none)
}
