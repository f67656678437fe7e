package main

import (
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// The change is op(x) − x of docs/steering.md, worked out by hand.
func TestChangeOf(t *testing.T) {
	v, x := []float32{3, 4}, []float32{2, 1} // ‖v‖² = 25, v·x = 10
	p := loader.Parameters{Vector: v, Left: [][]float32{{1, 0}, {2, 2}}, Right: [][]float32{{1, 1}, {0, 5}}}
	change := make([]float64, 2)
	for _, c := range []struct {
		kind loader.Kind
		want []float64
	}{
		{loader.Add, []float64{3, 4}},
		{loader.Ablate, []float64{-3 * 10. / 25, -4 * 10. / 25}},
		{loader.Clamp, []float64{2*3 - 3*10./25, 2*4 - 4*10./25}},
		{loader.Affine, []float64{3 + 1*3 + 2*5, 4 + 2*5}},
	} {
		changeOf(ggmlsteer.Lower(c.kind, 2, p), x, change)
		require.InDeltaSlice(t, c.want, change, 1e-6, string(c.kind))
	}
}
