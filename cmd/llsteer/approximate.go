package main

import (
	"context"
	"fmt"
	"math"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
)

// heldOutTexts are what an approximation is measured on, where the user names nothing.
var heldOutTexts = []string{
	"The train was late again, so we waited on the platform and talked about the summer.",
	"To open a file, choose the File menu and then select the folder where it is.",
	"Water boils at a lower temperature in the mountains, because the air is thinner there.",
	"She asked her brother whether he had seen the letter, and he said that he had not.",
	"In 1905 the town had a school, two churches and a market that was held every Friday.",
	"My favorite meal is a simple soup with bread, and I could eat it every day.",
}

// An approximation finds, for steerings that are more than a vector, the vector
// nearest to them: the mean of op(x) − x over the tokens of some prompts, x being the
// unsteered stream. That is the vector of least mean squared distance from them.
type approximation struct {
	model           *ggmlsteer.Model
	flags           *modelFlags
	active          []ggmlsteer.Active
	prompts         []string // none: those of the steerings' recipes
	heldOut         []string // none: heldOutTexts
	tokens, heldTok [][]ggmlsteer.Token
	result          approximatedView
}

// approximatedView is the part of the report about it.
type approximatedView struct {
	Prompts int `json:"prompts"`
	Tokens  int `json:"tokens"`
	// Explained is the part of the mean square of op(x) − x that the vectors have,
	// over all layers.
	Explained float64 `json:"explained"`
	HeldOut   int     `json:"held_out"`
	// mean over the held-out texts' tokens, nats
	KL          float64 `json:"kl"`           // of the exported steering from the exact one
	KLUnsteered float64 `json:"kl_unsteered"` // of no steering from the exact one
}

func (a *approximatedView) text() string {
	return fmt.Sprintf("mean change over %d tokens (prompts: %d), %.0f %% of the mean square of what the steering changes\n"+
		"KL divergence from the exact steering on held-out text (texts: %d): %.4f nats a token; of no steering: %.4f\n",
		a.Tokens, a.Prompts, 100*a.Explained, a.HeldOut, a.KL, a.KLUnsteered)
}

func (a *approximation) run(ctx context.Context) ([]ggmlsteer.Active, error) {
	if err := a.readTexts(); err != nil {
		return nil, err
	}
	var additive []ggmlsteer.Active
	total, explained := 0.0, 0.0
	for _, active := range a.active {
		s := active.Steering
		if s.Kind == loader.Add {
			additive = append(additive, active)
			continue
		}
		vector := &loader.Steering{Kind: loader.Add, Layers: s.Layers, Arch: s.Arch, Embd: s.Embd, Model: s.Model}
		means, square, err := a.means(ctx, s)
		if err != nil {
			return nil, err
		}
		for _, mean := range means {
			row := make([]float32, len(mean))
			for i, x := range mean {
				row[i] = float32(x)
				explained += x * x
			}
			vector.Params = append(vector.Params, loader.Parameters{Vector: row})
		}
		total += square
		additive = append(additive, ggmlsteer.Active{Steering: vector, Strength: active.Strength})
	}
	a.result.Explained = 1
	if total > 0 {
		a.result.Explained = explained / total
	}
	return additive, a.measure(ctx, additive)
}

// readTexts tokenizes the prompts and the texts to measure on. Token 0, which is
// BOS in most models and has a stream of its own, does not count in the mean.
func (a *approximation) readTexts() error {
	add := func(text string, f *modelFlags) error {
		tokens, err := f.promptTokens(a.model, text)
		if err != nil {
			return err
		}
		if err := a.flags.fits(a.model, fmt.Sprintf("the prompt %q", text), len(tokens)); err != nil {
			return err
		}
		if len(tokens) > 1 {
			a.tokens = append(a.tokens, tokens)
			a.result.Tokens += len(tokens) - 1
		}
		return nil
	}
	for _, p := range a.prompts {
		if err := add(p, a.flags); err != nil {
			return err
		}
	}
	if len(a.prompts) == 0 {
		seen := map[string]bool{}
		for _, active := range a.active {
			s := active.Steering
			if s.Kind == loader.Add || s.Recipe == "" {
				continue
			}
			job, err := optimize.ReadJob("recipe", []byte(s.Recipe))
			if err != nil {
				return badInput("give prompts with -p", "the steering's own job cannot be read: %v", err)
			}
			f := modelFlags{chat: job.Chat && a.model.Info().Chat, system: job.System}
			prompts := job.Prompts
			for _, e := range job.Examples {
				prompts = append(prompts, e.Prompt)
			}
			for _, p := range prompts {
				if seen[p] {
					continue
				}
				seen[p] = true
				if err := add(p, &f); err != nil {
					return err
				}
			}
		}
	}
	if len(a.tokens) == 0 {
		return badInput("-p TEXT, as often as you like", "there is no prompt to take the mean over: the steering keeps no job")
	}
	a.result.Prompts = len(a.tokens)
	texts := a.heldOut
	if len(texts) == 0 {
		texts = heldOutTexts
	}
	for _, text := range texts {
		tokens, err := a.flags.promptTokens(a.model, text)
		if err != nil {
			return err
		}
		if err := a.flags.fits(a.model, fmt.Sprintf("the held-out text %q", text), len(tokens)); err != nil {
			return err
		}
		a.heldTok = append(a.heldTok, tokens)
	}
	a.result.HeldOut = len(texts)
	return nil
}

// means are the mean of op(x) − x at each layer of a steering, and the mean square
// of op(x) − x summed over the layers.
func (a *approximation) means(ctx context.Context, s *loader.Steering) (means [][]float64, square float64, err error) {
	ops := make([]ggmlsteer.Operation, len(s.Layers))
	for i := range ops {
		ops[i] = ggmlsteer.Lower(s.Kind, s.Clamp, s.At(i))
		means = append(means, make([]float64, s.Embd))
	}
	weight := 1 / float64(a.result.Tokens)
	change := make([]float64, s.Embd)
	for _, tokens := range a.tokens {
		streams, err := a.model.Activations(ctx, tokens, s.Layers)
		if err != nil {
			return nil, 0, err
		}
		for i, op := range ops {
			for _, x := range streams[i][1:] {
				changeOf(op, x, change)
				for j, c := range change {
					means[i][j] += weight * c
					square += weight * c * c
				}
			}
		}
	}
	return means, square, nil
}

// changeOf is what an operation at strength 1 adds to one token's stream.
func changeOf(op ggmlsteer.Operation, x []float32, change []float64) {
	clear(change)
	for _, v := range op.Vectors {
		for i, f := range v {
			change[i] += float64(f)
		}
	}
	for j, right := range op.Right {
		along := 0.0
		for i, f := range right {
			along += float64(f) * float64(x[i])
		}
		for i, f := range op.Left[j] {
			change[i] += along * float64(f)
		}
	}
}

// measure compares the next-token probabilities under the exact steering with those
// under the vectors and without steering.
func (a *approximation) measure(ctx context.Context, additive []ggmlsteer.Active) error {
	longest, count := 0, 0
	for _, tokens := range a.heldTok {
		longest = max(longest, len(tokens))
		count += len(tokens)
	}
	var decoders [2]*ggmlsteer.Decoder
	for i := range decoders {
		d, err := a.model.NewDecoder(ggmlsteer.DecoderOptions{Context: longest, Precision: ggmlsteer.F32})
		if err != nil {
			return err
		}
		defer d.Close()
		decoders[i] = d
	}
	if err := decoders[0].Steer(a.active...); err != nil {
		return err
	}
	for _, other := range []struct {
		active []ggmlsteer.Active
		mean   *float64
	}{{additive, &a.result.KL}, {nil, &a.result.KLUnsteered}} {
		if err := decoders[1].Steer(other.active...); err != nil {
			return err
		}
		for _, tokens := range a.heldTok {
			kl, err := ggmlsteer.Divergence(ctx, decoders[0], decoders[1], tokens)
			if err != nil {
				return err
			}
			if math.IsNaN(kl) || math.IsInf(kl, 0) {
				return fmt.Errorf("the probabilities under the steering are not finite: it is too strong")
			}
			*other.mean += max(kl, 0) * float64(len(tokens)) / float64(count)
		}
	}
	return nil
}
