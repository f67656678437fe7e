// Command regression measures what must not become slow, on any model and in a minute: the times of
// things that are done by turns in one run, as ratios. TestSpeed has bounds for them.
//
//	go run ./bench/regression -m MODEL
//
// It prints a line of JSON with medians of
//
//	step      an optimization step in precision bf16, all blocks in it, to an ordinary forward pass over the same tokens
//	bf16      a step in precision bf16 to one in float32
//	examples  a step over eight examples with the same prompt to a step over one
//	add, clamp, matrix
//	          decoding a token, steered at all layers, to unsteered
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// the shape of the tutorial's example
const prompt, completion = 64, 13

func main() {
	model := flag.String("m", "", "GGUF model")
	threads := flag.Int("t", 0, "threads; 0: one for each core")
	runs := flag.Int("runs", 7, "times that each is done")
	flag.Parse()
	if err := measure(*model, *threads, *runs); err != nil {
		fmt.Fprintln(os.Stderr, "regression:", err)
		os.Exit(1)
	}
}

func measure(path string, threads, runs int) error {
	m, err := ggmlsteer.Open(path, ggmlsteer.Options{Threads: threads})
	if err != nil {
		return err
	}
	defer m.Close()
	sequences := examples(m, 8)
	single, err := newStep(m, ggmlsteer.F32, sequences[:2])
	if err != nil {
		return err
	}
	rounded, err := newStep(m, ggmlsteer.BF16, sequences[:2])
	if err != nil {
		return err
	}
	eight, err := newStep(m, ggmlsteer.F32, sequences)
	if err != nil {
		return err
	}
	// the batch's tokens, one after the other
	forward := func() error {
		d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: prompt + 2*completion})
		if err != nil {
			return err
		}
		defer d.Close()
		tokens := slices.Concat(sequences[0].Tokens[:prompt+completion-1], sequences[1].Tokens[prompt:prompt+completion-1])
		if err := d.Slot(0).Append(tokens...); err != nil {
			return err
		}
		return d.Decode(context.Background())
	}
	times, err := byTurns(runs, single, forward, rounded, eight)
	if err != nil {
		return err
	}
	result := map[string]float64{
		"step":     ratio(times[2], times[1]),
		"bf16":     ratio(times[2], times[0]),
		"examples": ratio(times[3], times[0]),
	}

	names, ways, err := decoders(m, 6*runs)
	if err != nil {
		return err
	}
	if times, err = byTurns(6*runs, ways...); err != nil {
		return err
	}
	for i, name := range names {
		result[name] = ratio(times[i+1], times[0])
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// byTurns does each thing several times, each first in turn, and returns the seconds that they took.
func byTurns(runs int, things ...func() error) ([][]float64, error) {
	times := make([][]float64, len(things))
	for i := range runs + 1 {
		for j := range things {
			k := (i + j) % len(things)
			began := time.Now()
			if err := things[k](); err != nil {
				return nil, err
			}
			if i > 0 { // the first time warms up
				times[k] = append(times[k], time.Since(began).Seconds())
			}
		}
	}
	return times, nil
}

// ratio is the median of the ratios of two times that were measured in the same turn.
func ratio(a, b []float64) float64 {
	var ratios []float64
	for i := range a {
		ratios = append(ratios, a[i]/b[i])
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// examples have a prompt in common and two completions each.
func examples(m *ggmlsteer.Model, n int) (sequences []ggmlsteer.Sequence) {
	random := rand.New(rand.NewPCG(1, 1))
	tokens := make([]ggmlsteer.Token, prompt+completion)
	strengths := slices.Repeat([]float32{1}, len(tokens))
	for i := range 2 * n {
		for j := range tokens {
			if i == 0 || j >= prompt {
				tokens[j] = ggmlsteer.Token(random.IntN(m.Info().Vocab))
			}
		}
		sequences = append(sequences, ggmlsteer.Sequence{Tokens: slices.Clone(tokens), Prompt: prompt, Vector: [][]float32{strengths}})
	}
	return sequences
}

// newStep prepares losses and gradient with respect to a vector at layer 0.
func newStep(m *ggmlsteer.Model, precision ggmlsteer.Precision, sequences []ggmlsteer.Sequence) (func() error, error) {
	s, err := m.NewSession(ggmlsteer.SessionOptions{Layers: []int{0}, Vectors: 1, Coldness: 1, Precision: precision}, sequences)
	if err != nil {
		return nil, err
	}
	at := []ggmlsteer.Operation{{Vectors: [][]float32{make([]float32, m.Info().Embd)}}}
	weights := make([][]float64, len(sequences))
	for i := range weights {
		weights[i] = slices.Repeat([]float64{1}, completion)
	}
	return func() error {
		if _, err := s.Forward(context.Background(), at); err != nil {
			return err
		}
		_, err := s.Backward(context.Background(), weights)
		return err
	}, nil
}

// decoders decode a token: unsteered, and under the named kinds of steering.
func decoders(m *ggmlsteer.Model, tokens int) (names []string, decode []func() error, err error) {
	random := rand.New(rand.NewPCG(2, 2))
	rows := func(n int) (rows [][]float32) {
		for range n {
			v := make([]float32, m.Info().Embd)
			for i := range v {
				v[i] = float32(random.NormFloat64() / math.Sqrt(float64(len(v))))
			}
			rows = append(rows, v)
		}
		return rows
	}
	parameters := loader.Parameters{Vector: rows(1)[0]}
	withMatrix := loader.Parameters{Vector: parameters.Vector, Left: rows(8), Right: rows(8)}
	names = []string{"add", "clamp", "matrix"}
	steerings := []*loader.Steering{
		nil,
		{Kind: loader.Add, Params: []loader.Parameters{parameters}},
		{Kind: loader.Clamp, Clamp: 1, Params: []loader.Parameters{parameters}},
		{Kind: loader.Affine, Params: []loader.Parameters{withMatrix}},
	}
	for _, s := range steerings {
		d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: tokens + 1})
		if err != nil {
			return nil, nil, err
		}
		if s != nil {
			s.Shared = true
			for layer := range m.Info().Layers {
				s.Layers = append(s.Layers, layer)
			}
			if err := d.Steer(ggmlsteer.Active{Steering: s, Strength: 0.01}); err != nil {
				return nil, nil, err
			}
		}
		decode = append(decode, func() error {
			if err := d.Slot(0).Append(1); err != nil {
				return err
			}
			return d.Decode(context.Background())
		})
	}
	return names, decode, nil
}
