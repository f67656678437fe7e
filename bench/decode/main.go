// Command decode measures prompt processing and decoding, in tokens a second, unsteered and
// with several kinds of steering, alternately in one run, and gives the ratios of decoding.
//
//	go run ./bench/decode -m MODEL [-prompts 64,128,512] [-n 100] [-runs 5]
//
// A ratio is the median over the tokens of the time steered to that unsteered, each
// pair a few seconds apart at most, with the bounds of its 95 % confidence interval. For each
// token the ways come in another order, for what came before leaves its traces. One way is
// unsteered again: how far its ratio is from 1 is what the measurement makes of nothing.
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
	"strconv"
	"strings"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

func main() {
	model := flag.String("m", "", "GGUF model")
	prompts := flag.String("prompts", "64,128,512", "tokens of the prompts")
	n := flag.Int("n", 100, "tokens to decode in each way")
	runs := flag.Int("runs", 5, "of each prompt, of which the fastest counts")
	threads := flag.Int("t", 0, "threads")
	gpuLayers := flag.Int("ngl", 0, "blocks on the GPU, -1 for all")
	flag.Parse()
	if err := measure(*model, *prompts, *n, *runs, ggmlsteer.Options{Threads: *threads, GPULayers: *gpuLayers}); err != nil {
		fmt.Fprintln(os.Stderr, "decode:", err)
		os.Exit(1)
	}
}

// ways of decoding, by name; the first is unsteered, the second again
func ways(info ggmlsteer.Info) (names []string, steerings map[string]*loader.Steering) {
	random := rand.New(rand.NewPCG(1, 1))
	vector := func() []float32 {
		v := make([]float32, info.Embd)
		for i := range v {
			v[i] = float32(random.NormFloat64() / math.Sqrt(float64(info.Embd)))
		}
		return v
	}
	rows := func() (r [][]float32) {
		for range 8 {
			r = append(r, vector())
		}
		return r
	}
	names, steerings = []string{"unsteered", "unsteered again"}, map[string]*loader.Steering{}
	for _, layers := range [][]int{{info.Layers / 2}, nil} {
		where := "one layer"
		if layers == nil {
			where = "all layers"
			for i := range info.Layers {
				layers = append(layers, i)
			}
		}
		for kind, s := range map[string]*loader.Steering{
			"add":             {Kind: loader.Add, Params: []loader.Parameters{{Vector: vector()}}},
			"clamp":           {Kind: loader.Clamp, Clamp: 1, Params: []loader.Parameters{{Vector: vector()}}},
			"matrix, 8 ranks": {Kind: loader.Affine, Params: []loader.Parameters{{Vector: vector(), Left: rows(), Right: rows()}}},
		} {
			s.Layers, s.Shared = layers, true
			name := kind + " at " + where
			names, steerings[name] = append(names, name), s
		}
	}
	slices.Sort(names[2:])
	return names, steerings
}

func measure(path, prompts string, n, runs int, o ggmlsteer.Options) error {
	ctx := context.Background()
	m, err := ggmlsteer.Open(path, o)
	if err != nil {
		return err
	}
	defer m.Close()
	seconds := func(d *ggmlsteer.Decoder, tokens ...ggmlsteer.Token) (float64, error) {
		if err := d.Slot(0).Append(tokens...); err != nil {
			return 0, err
		}
		began := time.Now()
		err := d.Decode(ctx)
		return time.Since(began).Seconds(), err
	}
	result := map[string]any{"model": m.Info().Name, "quantization": m.Info().Quantization}

	rates := map[string]float64{}
	for _, p := range strings.Split(prompts, ",") {
		length, err := strconv.Atoi(p)
		if err != nil {
			return err
		}
		d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: length, Sequences: 1})
		if err != nil {
			return err
		}
		best := math.Inf(1)
		for range runs {
			tokens := make([]ggmlsteer.Token, length)
			for i := range tokens {
				tokens[i] = ggmlsteer.Token(260 + i)
			}
			d.Clear()
			s, err := seconds(d, tokens...)
			if err != nil {
				return err
			}
			best = min(best, s)
		}
		d.Close()
		rates[p] = float64(length) / best
	}
	result["prompt_tokens_per_second"] = rates

	names, steerings := ways(m.Info())
	decoders := map[string]*ggmlsteer.Decoder{}
	for _, name := range names {
		d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: n + 1, Sequences: 1})
		if err != nil {
			return err
		}
		defer d.Close()
		if s := steerings[name]; s != nil {
			if err := d.Steer(ggmlsteer.Active{Steering: s, Strength: 0.01}); err != nil {
				return err
			}
		}
		if _, err := seconds(d, 260); err != nil { // warms up
			return err
		}
		decoders[name] = d
	}
	var plain []float64
	ratios := map[string][]float64{}
	for i := range n {
		times := map[string]float64{}
		for _, j := range rand.Perm(len(names)) {
			name := names[j]
			if times[name], err = seconds(decoders[name], ggmlsteer.Token(261+i)); err != nil {
				return err
			}
		}
		plain = append(plain, times[names[0]])
		for _, name := range names[1:] {
			ratios[name] = append(ratios[name], times[name]/times[names[0]])
		}
	}
	slices.Sort(plain)
	result["tokens_per_second"] = 1 / plain[len(plain)/2]
	steered := map[string][3]float64{}
	for name, r := range ratios {
		slices.Sort(r)
		// ranks between which the true median is in 95 of 100 cases
		margin := int(math.Ceil(0.98 * math.Sqrt(float64(n))))
		steered[name] = [3]float64{r[n/2], r[max(0, n/2-margin)], r[min(n-1, n/2+margin)]}
	}
	result["to_unsteered"] = steered
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", " ")
	return out.Encode(result)
}
