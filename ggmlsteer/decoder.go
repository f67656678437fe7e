package ggmlsteer

/*
#include "steer.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/llsteer/llsteer/loader"
)

// A Decoder computes texts with a KV cache: one in each of its slots, side by side, and
// each under steerings of its own. A server's loop is
//
//	slot.Steer(…)                      // a request comes: its steerings,
//	kept, err := slot.Set(prompt, len(prompt)) // and its prompt, of which kept tokens are there already
//	for … {
//		err = d.Decode(ctx)        // all slots that have something to compute, in one batch
//		token, err := slot.Next(sampler)
//		err = slot.Append(token)
//	}
type Decoder struct {
	model   *Model
	options DecoderOptions
	slots   []*Slot
	loaded  []*lowered // what the engine has: strength k is the factor of loaded[k]
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
	options.precision = C.steer_precision(o.Precision)
	d := &Decoder{model: m, options: o}
	if err := call(nil, func(_ *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_decoder_new(m.c, &options, &d.c, text, size)
	}); err != nil {
		m.release()
		return nil, err
	}
	for i := range o.Sequences {
		d.slots = append(d.slots, &Slot{decoder: d, index: i, row: noRow})
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

// Slot is one of the decoder's slots, from 0 to DecoderOptions.Sequences − 1.
func (d *Decoder) Slot(i int) *Slot { return d.slots[i] }

// Steer steers every slot alike: see Slot.Steer.
func (d *Decoder) Steer(active ...Active) error {
	if d.c == nil {
		return errDecoderClosed
	}
	uses, err := d.model.uses(active)
	if err != nil {
		return err
	}
	for _, s := range d.slots {
		s.uses = uses
	}
	return nil
}

// Clear empties all slots; their steerings stay.
func (d *Decoder) Clear() {
	if d.c != nil {
		C.steer_decoder_clear(d.c)
		runtime.KeepAlive(d)
	}
	for _, s := range d.slots {
		s.tokens, s.factors, s.computed, s.prompt, s.row = nil, nil, 0, 0, noRow
	}
}

// Decode computes what the slots were given since the last time. After an
// error (ctx's, if it ended) all of that is still to be computed.
func (d *Decoder) Decode(ctx context.Context) error {
	if d.c == nil {
		return errDecoderClosed
	}
	if d.options.Sequences > 1 && d.options.Precision == Ordinary {
		return d.decodeApart(ctx)
	}
	return d.decode(ctx, d.slots, d.options.Context)
}

// decodeApart computes what is more than one token in a batch of its slot alone, but for
// the last token, and then the last tokens together. The size of a batch decides how products are
// rounded in ordinary decoding, at 32 tokens, and so with fewer slots than that a text's logits
// do not depend on what other slots hold.
func (d *Decoder) decodeApart(ctx context.Context) error {
	before := make([]int, len(d.slots))
	for i, s := range d.slots {
		before[i] = s.computed
	}
	err := func() error {
		for i, s := range d.slots {
			last := len(s.tokens) - 1
			if last <= s.computed {
				continue
			}
			tokens := s.tokens
			s.tokens = tokens[:last:last]
			err := d.decode(ctx, d.slots[i:i+1], d.options.Context)
			s.tokens = tokens
			if err != nil {
				return err
			}
		}
		return d.decode(ctx, d.slots, d.options.Context)
	}()
	if err != nil {
		for i, s := range d.slots {
			s.computed, s.row = s.keep(min(before[i], s.computed)), noRow
		}
	}
	return err
}

// decode computes slots in one batch. It gives logits after the last token of each, and after
// every one from the position rowsFrom on; those of other slots go.
func (d *Decoder) decode(ctx context.Context, slots []*Slot, rowsFrom int) error {
	var tokens []C.steer_token
	var sequences []C.int32_t
	var wanted []C.int8_t
	var factors [][]factor
	for _, s := range slots {
		for at := s.computed; at < len(s.tokens); at++ {
			tokens, sequences = append(tokens, C.steer_token(s.tokens[at])), append(sequences, C.int32_t(s.index))
			want := C.int8_t(0)
			if at >= rowsFrom || at == len(s.tokens)-1 {
				want = 1
			}
			wanted = append(wanted, want)
			factors = append(factors, s.factorsAt(at))
		}
	}
	n := len(tokens)
	if n == 0 {
		return nil
	}
	if err := d.load(factors); err != nil {
		return err
	}
	strengths := strengthsOf(d.loaded, factors)
	err := call(ctx, func(cancel *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_decode(d.c, C.int32_t(n), &tokens[0], &sequences[0], &wanted[0], &strengths[0], cancel, text, size)
	})
	for _, s := range d.slots {
		s.row = noRow
	}
	row := 0
	for _, s := range slots {
		computed := len(s.tokens) - s.computed
		switch {
		case computed == 0:
		case err != nil:
			s.computed = s.keep(s.computed)
		default:
			s.factors = append(s.factors[:s.computed], factors[row:row+computed]...)
			row += computed
			s.computed, s.row = len(s.tokens), row-1
		}
	}
	return err
}

// load gives the engine the steerings that slots use, and those that tokens are to be
// computed with, unless it has exactly these.
func (d *Decoder) load(factors [][]factor) error {
	var needed []*lowered
	need := func(l *lowered) {
		if !slices.ContainsFunc(needed, func(other *lowered) bool { return other.id == l.id }) {
			needed = append(needed, l)
		}
	}
	for _, s := range d.slots {
		for _, u := range s.uses {
			need(u.lowered)
		}
	}
	for i := range factors {
		for _, f := range factors[i] {
			need(f.lowered)
		}
	}
	// in an order that other slots do not change, and so neither a slot's rounding
	slices.SortFunc(needed, (*lowered).compare)
	if slices.EqualFunc(needed, d.loaded, func(a, b *lowered) bool { return a.id == b.id }) {
		return nil
	}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	ops := d.model.operations(needed, &pinner)
	d.loaded = nil // until it is done
	defer runtime.KeepAlive(d)
	err := call(nil, func(_ *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_decoder_steer(d.c, unsafe.SliceData(ops), C.int32_t(len(ops)), C.int32_t(len(needed)), text, size)
	})
	if err == nil {
		d.loaded = needed
	}
	return err
}

// operations are steerings as the engine takes them: strength k is the factor of all[k].
func (m *Model) operations(all []*lowered, pinner *runtime.Pinner) []C.steer_operation {
	var ops []C.steer_operation
	for layer := range m.info.Layers + 1 { // the last is the output of the last block
		var vectors, left, right []float32
		var sVectors, sRows []C.int32_t
		for k, l := range all {
			i := slices.Index(l.layers, layer)
			if i < 0 {
				continue
			}
			for _, v := range l.ops[i].Vectors {
				vectors, sVectors = append(vectors, v...), append(sVectors, C.int32_t(k))
			}
			for j := range l.ops[i].Left {
				left, right, sRows = append(left, l.ops[i].Left[j]...), append(right, l.ops[i].Right[j]...), append(sRows, C.int32_t(k))
			}
		}
		if len(sVectors)+len(sRows) == 0 {
			continue
		}
		pin(pinner, vectors)
		pin(pinner, left)
		pin(pinner, right)
		pin(pinner, sVectors)
		pin(pinner, sRows)
		ops = append(ops, C.steer_operation{
			layer: C.int32_t(layer), n_vectors: C.int32_t(len(sVectors)), vectors: (*C.float)(unsafe.SliceData(vectors)), s_vectors: unsafe.SliceData(sVectors),
			rank: C.int32_t(len(sRows)), left: (*C.float)(unsafe.SliceData(left)), right: (*C.float)(unsafe.SliceData(right)), s_rows: unsafe.SliceData(sRows),
		})
	}
	return ops
}

// strengthsOf are the strengths [len(all)][len(factors)] of tokens, of which each has its factors.
func strengthsOf(all []*lowered, factors [][]factor) []C.float {
	n := len(factors)
	strengths := make([]C.float, len(all)*n+1) // never empty, so that it has an address
	for i := range factors {
		for _, f := range factors[i] {
			k := slices.IndexFunc(all, func(l *lowered) bool { return l.id == f.id })
			strengths[k*n+i] = C.float(f.strength)
		}
	}
	return strengths
}

// Logits returns the logits after each token of a text, as a copy, steered as the
// first slot is; the first prompt tokens count as the prompt. All slots are emptied before.
func (d *Decoder) Logits(ctx context.Context, tokens []Token, prompt int) ([][]float32, error) {
	if err := d.fits([][]Token{tokens}); err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(d) // its logits are read after the last call
	d.Clear()
	if _, err := d.slots[0].Set(tokens, prompt); err != nil {
		return nil, err
	}
	if err := d.decode(ctx, d.slots, 0); err != nil {
		return nil, err
	}
	rows := make([][]float32, len(tokens))
	for i := range rows {
		row, err := d.slots[0].logitsAt(i)
		if err != nil {
			return nil, err
		}
		rows[i] = slices.Clone(row)
	}
	return rows, nil
}

// Logprobs returns the probability of each of tokens[prompt:], steered.
func (m *Model) Logprobs(ctx context.Context, tokens []Token, prompt int, coldness float64, precision Precision, active ...Active) ([]Prob, error) {
	d, err := m.NewDecoder(DecoderOptions{Context: max(1, len(tokens)), Precision: precision})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := d.Steer(active...); err != nil {
		return nil, err
	}
	return d.Logprobs(ctx, tokens, prompt, coldness)
}

// Logprobs returns the probability of each of tokens[prompt:], steered as the first
// slot is. All slots are emptied before.
func (d *Decoder) Logprobs(ctx context.Context, tokens []Token, prompt int, coldness float64) ([]Prob, error) {
	if prompt < 1 || prompt >= len(tokens) {
		return nil, &loader.InputError{Message: fmt.Sprintf("of %d tokens %d are the prompt: both prompt and completion need at least one", len(tokens), prompt)}
	}
	if err := d.fits([][]Token{tokens}); err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(d) // its logits are read after the last call
	d.Clear()
	if _, err := d.slots[0].Set(tokens[:len(tokens)-1], prompt); err != nil {
		return nil, err
	}
	if err := d.decode(ctx, d.slots, prompt-1); err != nil {
		return nil, err
	}
	probs := make([]Prob, 0, len(tokens)-prompt)
	for i := prompt; i < len(tokens); i++ {
		row, err := d.slots[0].logitsAt(i - 1)
		if err != nil {
			return nil, err
		}
		probs = append(probs, probOf(row, tokens[i], coldness))
	}
	return probs, nil
}

// NextLogits returns the logits after the last token of each of several prompts, as
// copies. They are computed side by side, one in each slot from the first on, which are
// all emptied before.
func (d *Decoder) NextLogits(ctx context.Context, prompts [][]Token) ([][]float32, error) {
	if err := d.fits(prompts); err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(d) // its logits are read after the last call
	d.Clear()
	for i, prompt := range prompts {
		if _, err := d.slots[i].Set(prompt, len(prompt)); err != nil {
			return nil, err
		}
	}
	if err := d.Decode(ctx); err != nil {
		return nil, err
	}
	var rows [][]float32
	for i := range prompts {
		row, err := d.slots[i].Logits()
		if err != nil {
			return nil, err
		}
		rows = append(rows, slices.Clone(row))
	}
	return rows, nil
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
