// Command step measures one optimization step against llama.cpp's own forward
// pass over the same tokens, alternately in one run, and prints their ratio.
//
//	go run ./bench/step -m MODEL [-layer 0] [-runs 9] JOB.yaml
//
// The forward pass is ordinary prompt processing, on processors with AVX-512 in fixed point (see
// docs/engine.md), with logits after the last token only. It has every token of the step once, as
// the step has. A step is a forward pass in float32 and a backward pass, through all blocks from the
// layer up.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/optimize"
)

func main() {
	model := flag.String("m", "", "GGUF model")
	layer := flag.Int("layer", 0, "layer that is steered")
	runs := flag.Int("runs", 9, "steps and forward passes; the median counts")
	threads := flag.Int("t", 0, "threads")
	flag.Parse()
	if err := measure(*model, flag.Arg(0), *layer, *runs, *threads); err != nil {
		fmt.Fprintln(os.Stderr, "step:", err)
		os.Exit(1)
	}
}

func measure(model, jobFile string, layer, runs, threads int) error {
	ctx := context.Background()
	data, err := os.ReadFile(jobFile)
	if err != nil {
		return err
	}
	job, err := optimize.ReadJob(jobFile, data)
	if err != nil {
		return err
	}
	m, err := ggmlsteer.Open(model, ggmlsteer.Options{Threads: threads})
	if err != nil {
		return err
	}
	defer m.Close()

	var steps, forwards []float64
	lr, none := 1.0, 0
	job.Layers, job.TargetLoss, job.LR, job.Eps, job.MaxIters = optimize.Layers{List: []int{layer}}, nil, &lr, 0, &none
	one, err := optimize.Run(ctx, m, job, nil)
	if err != nil {
		return err
	}

	// as many tokens as a step has: each prompt once, then its completions
	var tokens []ggmlsteer.Token
	for _, e := range job.Examples {
		prompt, err := m.Tokenize(e.Prompt, false)
		if err != nil {
			return err
		}
		tokens = append(tokens, prompt...)
		for _, completion := range slices.Concat(e.Src, e.Dst) {
			whole, err := m.Tokenize(e.Prompt+completion, false)
			if err != nil {
				return err
			}
			tokens = append(tokens, whole[len(prompt):]...)
		}
	}
	d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: len(tokens) + 1})
	if err != nil {
		return err
	}
	defer d.Close()

	tokens = tokens[:one.TokensPerStep]

	job.MaxIters = &runs
	var began time.Time
	if _, err := optimize.Run(ctx, m, job, func(s optimize.Step) {
		if s.Iter > 0 { // the first evaluates the constant part, too
			steps = append(steps, time.Since(began).Seconds())
		}
		began = time.Now()
		if _, err := d.Generate(ctx, [][]ggmlsteer.Token{tokens}, ggmlsteer.GenerateOptions{Tokens: 1}, nil); err != nil {
			panic(err)
		}
		forwards = append(forwards, time.Since(began).Seconds())
		began = time.Now()
	}); err != nil {
		return err
	}
	slices.Sort(steps)
	slices.Sort(forwards)
	step, forward := steps[len(steps)/2], forwards[len(forwards)/2]
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"model": m.Info().Name, "quantization": m.Info().Quantization, "layer": layer, "tokens": len(tokens),
		"step_seconds": step, "forward_seconds": forward, "ratio": step / forward,
	})
}
