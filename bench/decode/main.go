// Command decode measures prompt processing and decoding, in tokens a second, alternately in
// one run: with weights as llama.cpp repacks them or as they are in the file, unsteered and
// steered.
//
//	go run ./bench/decode -m MODEL [-prompts 64,128,512] [-n 16] [-runs 5]
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
)

func main() {
	model := flag.String("m", "", "GGUF model")
	prompts := flag.String("prompts", "64,128,512", "tokens of the prompts")
	n := flag.Int("n", 16, "tokens to decode")
	runs := flag.Int("runs", 5, "of which the median counts")
	threads := flag.Int("t", 0, "threads")
	flag.Parse()
	if err := measure(*model, *prompts, *n, *runs, *threads); err != nil {
		fmt.Fprintln(os.Stderr, "decode:", err)
		os.Exit(1)
	}
}

func measure(path, prompts string, n, runs, threads int) error {
	ctx := context.Background()
	type way struct {
		name    string
		decoder *ggmlsteer.Decoder
	}
	var ways []way
	var lengths []int
	for _, p := range strings.Split(prompts, ",") {
		length, err := strconv.Atoi(p)
		if err != nil {
			return err
		}
		lengths = append(lengths, length)
	}
	for _, repacked := range []bool{true, false} {
		m, err := ggmlsteer.Open(path, ggmlsteer.Options{Threads: threads, Decoding: repacked})
		if err != nil {
			return err
		}
		defer m.Close()
		d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: slices.Max(lengths) + n, Sequences: 1})
		if err != nil {
			return err
		}
		defer d.Close()
		ways = append(ways, way{map[bool]string{true: "repacked", false: "as in the file"}[repacked], d})
	}
	results := map[string][]float64{}
	for range runs {
		for _, length := range lengths {
			for _, w := range ways {
				tokens := make([]ggmlsteer.Token, length)
				for i := range tokens {
					tokens[i] = ggmlsteer.Token(260 + i)
				}
				w.decoder.Clear()
				slot := w.decoder.Slot(0)
				if _, err := slot.Set(tokens, length); err != nil {
					return err
				}
				began := time.Now()
				if err := w.decoder.Decode(ctx); err != nil {
					return err
				}
				key := fmt.Sprintf("%s: prompt of %d", w.name, length)
				results[key] = append(results[key], float64(length)/time.Since(began).Seconds())
				if length != lengths[0] {
					continue
				}
				began = time.Now()
				for range n {
					if err := slot.Append(261); err != nil {
						return err
					}
					if err := w.decoder.Decode(ctx); err != nil {
						return err
					}
				}
				key = w.name + ": decoding"
				results[key] = append(results[key], float64(n)/time.Since(began).Seconds())
			}
		}
	}
	medians := map[string]float64{}
	for key, all := range results {
		slices.Sort(all)
		medians[key] = all[len(all)/2]
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", " ")
	return out.Encode(medians)
}
