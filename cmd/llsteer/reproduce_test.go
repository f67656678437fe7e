package main

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
	"github.com/stretchr/testify/require"
)

// The notebook's runs, and its numbers to the digits that it is quoted with.
func TestNotebookRuns(t *testing.T) {
	require.Equal(t, 10, notebookLayer)
	require.Equal(t, 0.1, notebookLR)
	expected := []struct {
		options []string
		theirs  string // steps, loss, norm
	}{
		{[]string{"max_iters=20", "max_norm=20"}, "21 6.58 20.0"},
		{[]string{"target_loss=3"}, "22 2.85 49.0"},
		{[]string{"starting_norm=1", "target_loss=3", "vector_clamp=1"}, "12 2.92 25.4"},
		{[]string{"affine_rank=2", "max_affine_norm=2", "max_norm=1", "target_loss=2"}, "15 1.75 1.0"},
		{[]string{"do_target_loss_sum=false", "target_loss=7.5"}, "10 11.92 32.3"},
		{[]string{"max_norm=30", "noise_scale=0.1", "target_loss=3", "target_loss_target_iters=5"}, "34 2.54 30.0"},
		{[]string{"target_loss=2.5"}, "25 2.11 51.5"},
		{[]string{"do_output_constr=true", "max_output_constr_iters=100", "output_constr_lr=0.059", "target_loss=2.5"}, "24 2.41 43.4"},
		{[]string{"entropy_weight=10", "lr=0.03", "max_iters=80", "regularization_weight=0.1", "sparsity_weight=0.1"}, "81 51.66 8.7"},
	}
	runs := notebookRuns(7.5)
	require.Len(t, runs, len(expected))
	for i, run := range runs {
		slices.Sort(run.Options)
		require.Equal(t, expected[i].options, run.Options, run.Name)
		require.Equal(t, expected[i].theirs, fmt.Sprintf("%d %.2f %.1f", run.Theirs.Steps, run.Theirs.Loss, run.Theirs.Norm), run.Name)
		require.Equal(t, i == 8, run.allLayers)
	}
	require.Equal(t, 7, *runs[8].Theirs.Layer)
	require.Equal(t, "51.5", fmt.Sprintf("%.1f", *runs[7].Theirs.Before))
}

// A trace has each step's losses, norms and, where it is asked for them, vectors and gradients.
func TestTrace(t *testing.T) {
	step := optimize.Step{Iter: 3, Loss: 1.5, Losses: optimize.Losses{{{0.5}, {1}}}, Layers: []optimize.LayerStep{{
		Layer: "2", Norm: 5, GradientNorm: 7,
		Params:   loader.Parameters{Vector: []float32{1, 2}, Left: [][]float32{{3, 4}}, Right: [][]float32{{5, 6}}},
		Gradient: loader.Parameters{Vector: []float32{7, 8}, Left: [][]float32{{9, 10}}, Right: [][]float32{{11, 12}}},
	}}}
	for tensors, layer := range map[bool]string{
		false: `{"norm":5,"gradient_norm":7}`,
		true: `{"norm":5,"gradient_norm":7,"vector":[1,2],"gradient":[7,8],"left":[[3,4]],"right":[[5,6]],
			"left_gradient":[[9,10]],"right_gradient":[[11,12]]}`,
	} {
		var text bytes.Buffer
		(&trace{w: &text, tensors: tensors}).step(step)
		require.JSONEq(t, `{"iter":3,"loss":1.5,"losses":[[[0.5],[1]]],"layers":{"2":`+layer+`}}`, text.String())
	}
}
