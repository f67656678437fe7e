// Command cpu times llsteer's optimization steps for bench/cpu/run.py and bench/cuda/run.py: it prepares a session,
// prints a line of JSON about it, and then, for every line that it reads, evaluates losses
// and gradient once and prints the seconds that this took.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
)

func main() {
	var s shape
	model := flag.String("m", "", "GGUF model")
	threads := flag.Int("t", 2, "threads")
	gpuLayers := flag.Int("ngl", 0, "blocks on the GPU, -1 for all")
	precision := flag.String("precision", "bf16", "f32 or bf16")
	flag.IntVar(&s.layer, "layer", 10, "layer that is steered")
	flag.IntVar(&s.examples, "examples", 1, "examples with the same prompt, each of two completions")
	flag.IntVar(&s.prompt, "prompt", 64, "tokens of the prompt")
	flag.IntVar(&s.completion, "completion", 13, "tokens of each completion")
	flag.Parse()
	if err := run(*model, ggmlsteer.Options{Threads: *threads, GPULayers: *gpuLayers}, *precision, s); err != nil {
		fmt.Fprintln(os.Stderr, "cpu:", err)
		os.Exit(1)
	}
}

type shape struct{ layer, examples, prompt, completion int }

func (s shape) sequences(vocab int) []ggmlsteer.Sequence {
	random := rand.New(rand.NewPCG(1, 1))
	tokens := make([]ggmlsteer.Token, s.prompt+s.completion)
	var all []ggmlsteer.Sequence
	for i := range 2 * s.examples {
		for j := range tokens {
			if i == 0 || j >= s.prompt {
				tokens[j] = ggmlsteer.Token(260 + random.IntN(vocab-260))
			}
		}
		strengths := make([]float32, len(tokens))
		for j := range strengths {
			strengths[j] = 1
		}
		all = append(all, ggmlsteer.Sequence{Tokens: append([]ggmlsteer.Token(nil), tokens...), Prompt: s.prompt, Vector: [][]float32{strengths}})
	}
	return all
}

func run(path string, o ggmlsteer.Options, precision string, s shape) error {
	ctx := context.Background()
	began := time.Now()
	m, err := ggmlsteer.Open(path, o)
	if err != nil {
		return err
	}
	defer m.Close()
	if reason := m.Info().NoGPU; reason != "" {
		return errors.New(reason)
	}
	opened := time.Since(began).Seconds()
	options := ggmlsteer.SessionOptions{Layers: []int{s.layer}, Vectors: 1, Coldness: 1, Precision: ggmlsteer.F32}
	if precision == "bf16" {
		options.Precision = ggmlsteer.BF16
	}
	sequences := s.sequences(m.Info().Vocab)
	session, err := m.NewSession(options, sequences)
	if err != nil {
		return err
	}
	defer session.Close()
	operation := ggmlsteer.Operation{Vectors: [][]float32{make([]float32, m.Info().Embd)}}
	weights := make([][]float64, len(sequences))
	for i := range weights {
		weights[i] = make([]float64, s.completion)
		for j := range weights[i] {
			weights[i][j] = float64(1 - i%2*2) // one to suppress, one to promote
		}
	}
	step := func() error {
		if _, err := session.Forward(ctx, []ggmlsteer.Operation{operation}); err != nil {
			return err
		}
		_, err := session.Backward(ctx, weights)
		return err
	}
	began = time.Now()
	if err := step(); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	out.Encode(map[string]any{"tokens": session.BatchTokens(), "open_seconds": opened, "first_seconds": time.Since(began).Seconds()})
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		operation.Vectors[0][0] += 1e-3
		began = time.Now()
		if err := step(); err != nil {
			return err
		}
		out.Encode(time.Since(began).Seconds())
	}
	return nil
}
