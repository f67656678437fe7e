package ggmlsteer

/*
#include "steer.h"
*/
import "C"

import (
	"context"
	"runtime"
	"strings"
	"unicode/utf8"
)

// A Sampler draws tokens of one text. Close it once it is no longer used.
type Sampler struct {
	c   *C.steer_sampler // nil: the likeliest token
	net runtime.Cleanup
}

// NewSampler makes one for what follows a prompt.
func NewSampler(o Sampling, prompt []Token) *Sampler {
	s := &Sampler{}
	if o.Temperature <= 0 {
		return s
	}
	options := C.steer_sampler_options{temperature: C.float(o.Temperature), top_k: C.int32_t(o.TopK), top_p: C.float(o.TopP), min_p: C.float(o.MinP),
		repeat_penalty: C.float(o.RepeatPenalty), seed: C.uint32_t(o.Seed)}
	s.c = C.steer_sampler_new(&options)
	s.net = runtime.AddCleanup(s, func(c *C.steer_sampler) { C.steer_sampler_free(c) }, s.c)
	for _, t := range prompt {
		C.steer_sampler_accept(s.c, C.steer_token(t))
	}
	return s
}

// Close frees the sampler.
func (s *Sampler) Close() error {
	if s.c != nil {
		s.net.Stop()
		C.steer_sampler_free(s.c)
		s.c = nil
	}
	return nil
}

// Next is the token that follows the slot's text: the likeliest, or a draw. It is not
// appended. A nil sampler takes the likeliest.
func (s *Slot) Next(sampler *Sampler) (Token, error) {
	logits, err := s.Logits()
	if err != nil {
		return 0, err
	}
	defer runtime.KeepAlive(s.decoder) // the logits are its
	best := 0
	for i, z := range logits {
		if z > logits[best] {
			best = i
		}
		if z != z {
			return 0, errNotANumber
		}
	}
	if sampler != nil && sampler.c != nil {
		return Token(C.steer_sample(sampler.c, s.decoder.c, C.int32_t(s.row))), nil
	}
	return Token(best), nil
}

// writing is a continuation that is being generated.
type writing struct {
	Continuation
	slot    *Slot
	sampler *Sampler
	text    []byte // all of it
	shown   int    // bytes that were given to onText
	done    bool
}

// Generate continues prompts side by side, one in each slot from the first on, steered as
// the slots are. onText, if not nil, gets each piece of text as it comes, whole characters
// at a time. When ctx ends it returns what there is, with ctx's error.
func (d *Decoder) Generate(ctx context.Context, prompts [][]Token, o GenerateOptions, onText func(prompt int, text string)) ([]Continuation, error) {
	if err := d.fits(prompts); err != nil {
		return nil, err
	}
	if !o.Keep {
		d.Clear()
	}
	all := make([]*writing, len(prompts))
	for i, prompt := range prompts {
		all[i] = &writing{slot: d.slots[i], sampler: NewSampler(o.Sampling, prompt)}
		defer all[i].sampler.Close()
		if _, err := d.slots[i].Set(prompt, len(prompt)); err != nil {
			return nil, err
		}
	}
	err := d.generate(ctx, all, o, onText)
	result := make([]Continuation, len(all))
	for i, w := range all {
		w.Text = string(w.text)
		result[i] = w.Continuation
	}
	return result, err
}

func (d *Decoder) generate(ctx context.Context, all []*writing, o GenerateOptions, onText func(int, string)) error {
	show := func(i int, until int) {
		w := all[i]
		if onText != nil && until > w.shown {
			onText(i, string(w.text[w.shown:until]))
			w.shown = until
		}
	}
	for _, w := range all {
		if o.Tokens <= 0 {
			w.Stop, w.done = StopLength, true
		}
	}
	for !allDone(all) {
		if err := d.Decode(ctx); err != nil {
			return err
		}
		for i, w := range all {
			if w.done {
				continue
			}
			token, err := w.slot.Next(w.sampler)
			if err != nil {
				return err
			}
			if d.model.ends(token) {
				w.Stop, w.done = StopEOS, true
				show(i, len(w.text))
				continue
			}
			w.Tokens = append(w.Tokens, token)
			w.text = append(w.text, d.model.text([]Token{token}, false)...)
			if at := firstStop(w.text, o.Stop); at >= 0 {
				w.text = w.text[:at]
				w.Stop, w.done = StopText, true
				show(i, at)
				continue
			}
			if len(w.Tokens) == o.Tokens || len(w.slot.tokens)+1 >= d.options.Context {
				w.Stop, w.done = StopLength, true
				show(i, len(w.text))
				continue
			}
			show(i, safeLength(w.text, o.Stop))
			if err := w.slot.Append(token); err != nil {
				return err
			}
		}
	}
	return nil
}

func allDone(all []*writing) bool {
	for _, w := range all {
		if !w.done {
			return false
		}
	}
	return true
}

// firstStop is where the first stop text begins, or -1.
func firstStop(text []byte, stops []string) int {
	first := -1
	for _, stop := range stops {
		if at := strings.Index(string(text), stop); stop != "" && at >= 0 && (first < 0 || at < first) {
			first = at
		}
	}
	return first
}

// safeLength is how much of a text can be shown: not the bytes of an unfinished
// character, nor what may be the beginning of a stop text.
func safeLength(text []byte, stops []string) int {
	n := len(text)
	for back := 1; back <= utf8.UTFMax && back <= n; back++ {
		if b := text[n-back]; utf8.RuneStart(b) {
			if !utf8.FullRune(text[n-back:]) {
				n -= back
			}
			break
		}
	}
	for _, stop := range stops {
		for k := min(len(stop)-1, len(text)); k > 0; k-- {
			if strings.HasSuffix(string(text), stop[:k]) {
				n = min(n, len(text)-k)
				break
			}
		}
	}
	return n
}
