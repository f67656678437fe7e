package ggmlsteer

import (
	"context"
	"runtime"
	"slices"
)

// NextLogits returns the logits after the last token of each of several prompts, as
// copies. They are computed side by side from an empty cache, steered as the
// decoder is.
func (d *Decoder) NextLogits(ctx context.Context, prompts [][]Token) ([][]float32, error) {
	if err := d.fits(prompts); err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(d) // its logits are read after the last call
	d.Clear()
	var steps []step
	var last []int
	for i, prompt := range prompts {
		for j, t := range prompt {
			steps = append(steps, step{token: t, sequence: i, prompt: true, getLogits: j == len(prompt)-1})
		}
		last = append(last, len(steps)-1)
	}
	if len(steps) == 0 {
		return nil, nil
	}
	if err := d.decode(ctx, steps); err != nil {
		return nil, err
	}
	rows := make([][]float32, len(prompts))
	for i, at := range last {
		row, err := d.logits(at)
		if err != nil {
			return nil, err
		}
		rows[i] = slices.Clone(row)
	}
	return rows, nil
}
