package ggmlsteer

/*
#include "steer.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/llsteer/llsteer/loader"
)

// A Decoder generates with a KV cache.
type Decoder struct {
	model   *Model
	options DecoderOptions
	active  []Active
	c       *C.steer_decoder
	net     runtime.Cleanup
}

// NewDecoder makes a decoder, unsteered.
func (m *Model) NewDecoder(o DecoderOptions) (*Decoder, error) {
	if o.Sequences == 0 {
		o.Sequences = 1
	}
	if err := m.checkLength(o.Context); err != nil {
		return nil, err
	}
	if err := m.acquire(); err != nil {
		return nil, err
	}
	options := C.steer_decoder_options{n_ctx: C.int32_t(o.Context), n_seq: C.int32_t(o.Sequences), n_cells: C.int32_t(o.cells)}
	if o.Precision == F32 {
		options.exact = 1
	}
	d := &Decoder{model: m, options: o}
	if err := call(nil, func(_ *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_decoder_new(m.c, &options, &d.c, text, size)
	}); err != nil {
		m.release()
		return nil, err
	}
	d.net = runtime.AddCleanup(d, freeDecoder, decoderHandle{m, d.c})
	return d, nil
}

type decoderHandle struct {
	model *Model
	c     *C.steer_decoder
}

func freeDecoder(h decoderHandle) {
	C.steer_decoder_free(h.c)
	h.model.release()
}

// Close frees the decoder.
func (d *Decoder) Close() error {
	if d.c != nil {
		d.net.Stop()
		freeDecoder(decoderHandle{d.model, d.c})
		d.c = nil
	}
	return nil
}

var errDecoderClosed = errors.New("the decoder is closed")

// Steer replaces the steerings in use, from the next token on; none: unsteered.
// Several at one layer all read the same unsteered x, and their changes add.
func (d *Decoder) Steer(active ...Active) error {
	if d.c == nil {
		return errDecoderClosed
	}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	var ops []C.steer_operation
	for layer := range d.model.info.Layers + 1 { // the last is the output of the last block
		var vectors, left, right []float32
		var sVectors, sRows []C.int32_t
		for k, a := range active {
			for i, l := range a.Steering.Layers {
				if l != layer {
					continue
				}
				op := Lower(a.Steering.Kind, a.Steering.Clamp, a.Steering.At(i))
				for _, row := range slices.Concat(op.Vectors, op.Left, op.Right) {
					if len(row) != d.model.info.Embd || len(op.Left) != len(op.Right) {
						return &loader.InputError{Message: fmt.Sprintf("a steering at layer %d is not of the model's width, %d", layer, d.model.info.Embd)}
					}
				}
				for _, v := range op.Vectors {
					vectors, sVectors = append(vectors, v...), append(sVectors, C.int32_t(k))
				}
				for j := range op.Left {
					left, right, sRows = append(left, op.Left[j]...), append(right, op.Right[j]...), append(sRows, C.int32_t(k))
				}
			}
		}
		if len(sVectors)+len(sRows) == 0 {
			continue
		}
		pin(&pinner, vectors)
		pin(&pinner, left)
		pin(&pinner, right)
		pin(&pinner, sVectors)
		pin(&pinner, sRows)
		ops = append(ops, C.steer_operation{
			layer: C.int32_t(layer), n_vectors: C.int32_t(len(sVectors)), vectors: (*C.float)(unsafe.SliceData(vectors)), s_vectors: unsafe.SliceData(sVectors),
			rank: C.int32_t(len(sRows)), left: (*C.float)(unsafe.SliceData(left)), right: (*C.float)(unsafe.SliceData(right)), s_rows: unsafe.SliceData(sRows),
		})
	}
	for _, a := range active {
		for _, l := range a.Steering.Layers {
			if l < 0 || l > d.model.info.Layers {
				return &loader.InputError{Message: fmt.Sprintf("the steering is for layer %d, and the model has layers 0 to %d, and the output of the last as layer %d", l, d.model.info.Layers-1, d.model.info.Layers)}
			}
		}
	}
	d.active = active
	defer runtime.KeepAlive(d)
	return call(nil, func(_ *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_decoder_steer(d.c, unsafe.SliceData(ops), C.int32_t(len(ops)), C.int32_t(len(active)), text, size)
	})
}

// Clear forgets all that was decoded.
func (d *Decoder) Clear() {
	if d.c != nil {
		C.steer_decoder_clear(d.c)
		runtime.KeepAlive(d)
	}
}

// A step is one token to decode.
type step struct {
	token     Token
	sequence  int
	prompt    bool // of a prompt, not generated
	getLogits bool
}

func (d *Decoder) decode(ctx context.Context, steps []step) error {
	n := len(steps)
	tokens, sequences, logits := make([]C.steer_token, n), make([]C.int32_t, n), make([]C.int8_t, n)
	strengths := make([]C.float, len(d.active)*n+1)
	for i, s := range steps {
		tokens[i], sequences[i] = C.steer_token(s.token), C.int32_t(s.sequence)
		if s.getLogits {
			logits[i] = 1
		}
		for k, a := range d.active {
			if s.prompt || !a.Steering.PromptOnly {
				strengths[k*n+i] = C.float(a.Strength)
			}
		}
	}
	return call(ctx, func(cancel *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_decode(d.c, C.int32_t(n), &tokens[0], &sequences[0], &logits[0], &strengths[0], cancel, text, size)
	})
}

// logits of step i of the last decode; valid until the next.
func (d *Decoder) logits(i int) ([]float32, error) {
	p := C.steer_decoder_logits(d.c, C.int32_t(i))
	if p == nil {
		return nil, errors.New("the decoder has no logits for a token that should have them")
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(p)), d.model.info.Vocab), nil
}

// Logits returns the logits after each token of a text, as a copy, steered as
// the decoder is; the first prompt tokens count as the prompt.
func (d *Decoder) Logits(ctx context.Context, tokens []Token, prompt int) ([][]float32, error) {
	if err := d.fits([][]Token{tokens}); err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(d) // its logits are read after the last call
	d.Clear()
	steps := make([]step, len(tokens))
	for i, t := range tokens {
		steps[i] = step{token: t, prompt: i < prompt, getLogits: true}
	}
	if err := d.decode(ctx, steps); err != nil {
		return nil, err
	}
	rows := make([][]float32, len(tokens))
	for i := range rows {
		row, err := d.logits(i)
		if err != nil {
			return nil, err
		}
		rows[i] = append([]float32(nil), row...)
	}
	return rows, nil
}

// Logprobs returns the probability of each of tokens[prompt:], in float32
// precision, steered.
func (m *Model) Logprobs(ctx context.Context, tokens []Token, prompt int, coldness float64, active ...Active) ([]Prob, error) {
	d, err := m.NewDecoder(DecoderOptions{Context: max(1, len(tokens)), Precision: F32})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := d.Steer(active...); err != nil {
		return nil, err
	}
	return d.Logprobs(ctx, tokens, prompt, coldness)
}

// Logprobs returns the probability of each of tokens[prompt:], steered as the decoder is.
func (d *Decoder) Logprobs(ctx context.Context, tokens []Token, prompt int, coldness float64) ([]Prob, error) {
	if prompt < 1 || prompt >= len(tokens) {
		return nil, &loader.InputError{Message: fmt.Sprintf("of %d tokens %d are the prompt: both prompt and completion need at least one", len(tokens), prompt)}
	}
	if err := d.fits([][]Token{tokens}); err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(d) // its logits are read after the last call
	d.Clear()
	steps := make([]step, len(tokens)-1)
	for i := range steps {
		steps[i] = step{token: tokens[i], prompt: i < prompt, getLogits: i >= prompt-1}
	}
	if err := d.decode(ctx, steps); err != nil {
		return nil, err
	}
	probs := make([]Prob, 0, len(tokens)-prompt)
	for i := prompt; i < len(tokens); i++ {
		row, err := d.logits(i - 1)
		if err != nil {
			return nil, err
		}
		probs = append(probs, probOf(row, tokens[i], coldness))
	}
	return probs, nil
}

// probOf is the softmax of coldness·logits at one token.
func probOf(logits []float32, token Token, coldness float64) Prob {
	top := float64(logits[0])
	for _, z := range logits {
		top = math.Max(top, float64(z))
	}
	others := 0.0 // without the token, so that 1 − p is accurate when p is near 1
	for i, z := range logits {
		if Token(i) != token {
			others += math.Exp(coldness * (float64(z) - top))
		}
	}
	own := coldness * (float64(logits[token]) - top)
	sum := math.Log(others + math.Exp(own))
	return Prob{Log: own - sum, LogComplement: math.Log(others) - sum}
}

// fits refuses prompts without tokens, too many or too long ones.
func (d *Decoder) fits(prompts [][]Token) error {
	if d.c == nil {
		return errDecoderClosed
	}
	if len(prompts) > d.options.Sequences {
		return fmt.Errorf("%d prompts, and the decoder has %d sequences", len(prompts), d.options.Sequences)
	}
	for _, p := range prompts {
		if len(p) == 0 {
			return &loader.InputError{Message: "a prompt has no tokens"}
		}
		if len(p) > d.options.Context {
			return &loader.InputError{Message: fmt.Sprintf("a prompt of %d tokens is longer than the context of %d", len(p), d.options.Context)}
		}
	}
	return nil
}

// writing is a continuation that is being generated.
type writing struct {
	Continuation
	text    []byte // all of it
	shown   int    // bytes that were given to onText
	sampler *C.steer_sampler
	logits  int // step of the last decode that it continues
	done    bool
}

// Generate continues prompts side by side, from an empty cache. onText, if not
// nil, gets each piece of text as it comes, whole characters at a time. When
// ctx ends it returns what there is, with ctx's error.
func (d *Decoder) Generate(ctx context.Context, prompts [][]Token, o GenerateOptions, onText func(prompt int, text string)) ([]Continuation, error) {
	if err := d.fits(prompts); err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(d)
	d.Clear()
	all := make([]*writing, len(prompts))
	var steps []step
	for i, prompt := range prompts {
		w := &writing{}
		all[i] = w
		if o.Temperature > 0 {
			options := C.steer_sampler_options{temperature: C.float(o.Temperature), top_k: C.int32_t(o.TopK), top_p: C.float(o.TopP), min_p: C.float(o.MinP),
				repeat_penalty: C.float(o.RepeatPenalty), seed: C.uint32_t(o.Seed)}
			w.sampler = C.steer_sampler_new(&options)
			defer C.steer_sampler_free(w.sampler)
			for _, t := range prompt {
				C.steer_sampler_accept(w.sampler, C.steer_token(t))
			}
		}
		for j, t := range prompt {
			steps = append(steps, step{token: t, sequence: i, prompt: true, getLogits: j == len(prompt)-1})
		}
		w.logits = len(steps) - 1
	}
	err := d.generate(ctx, prompts, all, steps, o, onText)
	result := make([]Continuation, len(all))
	for i, w := range all {
		w.Text = string(w.text)
		result[i] = w.Continuation
	}
	return result, err
}

func (d *Decoder) generate(ctx context.Context, prompts [][]Token, all []*writing, steps []step, o GenerateOptions, onText func(int, string)) error {
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
	for {
		if len(steps) == 0 || allDone(all) {
			return nil
		}
		if err := d.decode(ctx, steps); err != nil {
			return err
		}
		steps = steps[:0]
		for i, w := range all {
			if w.done {
				continue
			}
			token, err := d.next(w)
			if err != nil {
				return err
			}
			if d.model.ends(token) {
				w.Stop, w.done = StopEOS, true
				show(i, len(w.text))
				continue
			}
			w.Tokens = append(w.Tokens, token)
			w.text = append(w.text, d.model.Text([]Token{token}, false)...)
			if at := firstStop(w.text, o.Stop); at >= 0 {
				w.text = w.text[:at]
				w.Stop, w.done = StopText, true
				show(i, at)
				continue
			}
			if len(w.Tokens) == o.Tokens || len(prompts[i])+len(w.Tokens) >= d.options.Context {
				w.Stop, w.done = StopLength, true
				show(i, len(w.text))
				continue
			}
			show(i, safeLength(w.text, o.Stop))
			w.logits = len(steps)
			steps = append(steps, step{token: token, sequence: i, getLogits: true})
		}
	}
}

func allDone(all []*writing) bool {
	for _, w := range all {
		if !w.done {
			return false
		}
	}
	return true
}

// next is the token that follows: the likeliest, or a draw.
func (d *Decoder) next(w *writing) (Token, error) {
	if w.sampler != nil {
		return Token(C.steer_sample(w.sampler, d.c, C.int32_t(w.logits))), nil
	}
	logits, err := d.logits(w.logits)
	if err != nil {
		return 0, err
	}
	best := 0
	for i, z := range logits {
		if z > logits[best] {
			best = i
		}
		if z != z {
			return 0, errNotANumber
		}
	}
	return Token(best), nil
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
