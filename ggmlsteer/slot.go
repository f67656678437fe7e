package ggmlsteer

/*
#include "steer.h"
*/
import "C"

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"unique"
	"unsafe"

	"github.com/llsteer/llsteer/loader"
)

// A Slot is one of a Decoder's texts, with the steerings of its next tokens. It knows how
// each token was steered that it has computed, and keeps just those that are still right
// when it is given another text. What it gives depends on its text and its steerings, not
// on what it or other slots had before, but for the rounding: see docs/engine.md.
type Slot struct {
	decoder  *Decoder
	index    int
	uses     []use
	tokens   []Token
	prompt   int        // tokens before this position are the prompt
	computed int        // so many tokens are in the cache
	factors  [][]factor // how tokens are steered that were computed once; never shorter than computed
	row      int        // of the last decode's logits, the one after the last token; or noRow
}

const noRow = -1

// Steer replaces the slot's steerings, from the next token on that is decoded; none:
// unsteered. What was computed stays as it was until Set compares it. Several steerings
// at one layer all read the same unsteered x, and their changes add.
func (s *Slot) Steer(active ...Active) error {
	if s.decoder.c == nil {
		return errDecoderClosed
	}
	uses, err := s.decoder.model.uses(active)
	if err == nil {
		s.uses = uses
	}
	return err
}

// Set makes the slot's text these tokens, of which the first prompt ones are the prompt
// and the rest counts as generated. Tokens that the old text begins with too, and that
// were steered as they would be now, are kept; all others, at least the last one, the next
// Decode computes. To read a long prompt in pieces, set its beginnings, each with the whole
// prompt's length.
func (s *Slot) Set(tokens []Token, prompt int) (kept int, err error) {
	if s.decoder.c == nil {
		return 0, errDecoderClosed
	}
	if err := s.check(nil, tokens); err != nil {
		return 0, err
	}
	s.prompt, s.row = prompt, noRow
	for kept < min(s.computed, len(tokens)-1) && s.tokens[kept] == tokens[kept] && slices.EqualFunc(s.factors[kept], s.use(kept), factor.same) {
		kept++
	}
	kept = s.keep(kept)
	s.tokens, s.computed, s.factors = append(s.tokens[:kept], tokens[kept:]...), kept, s.factors[:kept]
	return kept, nil
}

// Append adds tokens that were generated.
func (s *Slot) Append(tokens ...Token) error {
	if s.decoder.c == nil {
		return errDecoderClosed
	}
	if err := s.check(s.tokens, tokens); err != nil {
		return err
	}
	s.tokens = append(s.tokens, tokens...)
	return nil
}

// Tokens are the slot's text, for reading.
func (s *Slot) Tokens() []Token { return s.tokens }

// check refuses here what would make a Decode fail, for the other slots, too.
func (s *Slot) check(before, tokens []Token) error {
	if n, limit := len(before)+len(tokens), s.decoder.options.Context; n > limit {
		return &loader.InputError{Message: fmt.Sprintf("a text of %d tokens is longer than the context of %d", n, limit)}
	}
	for _, t := range tokens {
		if vocab := s.decoder.model.info.Vocab; t < 0 || int(t) >= vocab {
			return &loader.InputError{Message: fmt.Sprintf("token %d is not of the vocabulary, which has %d", t, vocab)}
		}
	}
	return nil
}

// Logits are those after the slot's last token, of the vocabulary's size. They are valid
// until the next Decode.
func (s *Slot) Logits() ([]float32, error) { return s.logitsAt(len(s.tokens) - 1) }

var errNoLogits = errors.New("the slot has no logits: its last token was not computed in the last Decode")

// logitsAt are those after the token at a position, if the last decode gave it some.
func (s *Slot) logitsAt(at int) ([]float32, error) {
	if s.decoder.c == nil {
		return nil, errDecoderClosed
	}
	if s.row == noRow || s.computed != len(s.tokens) {
		return nil, errNoLogits
	}
	p := C.steer_decoder_logits(s.decoder.c, C.int32_t(s.row-(len(s.tokens)-1-at)))
	if p == nil {
		return nil, errNoLogits
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(p)), s.decoder.model.info.Vocab), nil
}

// keep cuts the cache off after n tokens and says how many are left.
func (s *Slot) keep(n int) int {
	defer runtime.KeepAlive(s.decoder)
	return int(C.steer_decoder_keep(s.decoder.c, C.int32_t(s.index), C.int32_t(n)))
}

// copy makes a slot's text another's.
func (s *Slot) copy(from *Slot) {
	C.steer_decoder_copy(s.decoder.c, C.int32_t(from.index), C.int32_t(s.index))
	s.tokens, s.factors = slices.Clone(from.tokens), slices.Clone(from.factors)
	s.prompt, s.computed, s.row = from.prompt, from.computed, noRow
}

// --- which token is steered by what -----------------------------------------------

// lowered is a steering as the engine has it. Its id is its content: a file that is read
// again is the same steering, one that was changed in place is another.
type lowered struct {
	id     unique.Handle[string]
	layers []int
	ops    []Operation // of each layer
}

func (l *lowered) compare(other *lowered) int {
	return strings.Compare(l.id.Value(), other.id.Value())
}

func (m *Model) lower(s *loader.Steering) (*lowered, error) {
	l := &lowered{}
	var content []byte
	number := func(n int) { content = binary.LittleEndian.AppendUint64(content, uint64(n)) }
	rows := func(rows [][]float32, layer int) error {
		number(len(rows))
		for _, row := range rows {
			if len(row) != m.info.Embd {
				return &loader.InputError{Message: fmt.Sprintf("a steering at layer %d has %d numbers in a row, and the model's width is %d", layer, len(row), m.info.Embd)}
			}
			for _, x := range row {
				content = binary.LittleEndian.AppendUint32(content, math.Float32bits(x))
			}
		}
		return nil
	}
	for i, layer := range s.Layers {
		if layer < 0 || layer > m.info.Layers {
			return nil, &loader.InputError{Message: fmt.Sprintf("the steering is for layer %d, and the model has layers 0 to %d, and the output of the last as layer %d", layer, m.info.Layers-1, m.info.Layers)}
		}
		op := Lower(s.Kind, s.Clamp, s.At(i))
		if len(op.Left) != len(op.Right) {
			return nil, &loader.InputError{Message: fmt.Sprintf("a steering at layer %d has a matrix of %d left rows and %d right ones", layer, len(op.Left), len(op.Right))}
		}
		l.layers, l.ops = append(l.layers, layer), append(l.ops, op)
		number(layer)
		for _, part := range [][][]float32{op.Vectors, op.Left, op.Right} {
			if err := rows(part, layer); err != nil {
				return nil, err
			}
		}
	}
	l.id = unique.Make(string(content))
	return l, nil
}

// A use is a steering in use.
type use struct {
	Active
	*lowered
}

// uses checks steerings, and puts them into the order of their contents, in which those
// that are the same stand together.
func (m *Model) uses(active []Active) ([]use, error) {
	var all []use
	for _, a := range active {
		if err := a.check(); err != nil {
			return nil, err
		}
		l, err := m.lower(a.Steering)
		if err != nil {
			return nil, err
		}
		all = append(all, use{a, l})
	}
	slices.SortStableFunc(all, func(a, b use) int { return a.compare(b.lowered) })
	return all, nil
}

func (a Active) check() error {
	switch {
	case a.Steering == nil:
		return &loader.InputError{Message: "an active steering is missing"}
	case !(math.Abs(a.Strength) <= math.MaxFloat32):
		return &loader.InputError{Message: fmt.Sprintf("the strength is %v, expected a finite number of float32's range", a.Strength)}
	case a.Phase < EveryToken || a.Phase > GeneratedTokens:
		return &loader.InputError{Message: fmt.Sprintf("there is no phase %d", a.Phase)}
	case a.From < 0:
		return &loader.InputError{Message: fmt.Sprintf("a text has no position %d to steer from", a.From)}
	case a.Phase == GeneratedTokens && a.Steering.PromptOnly:
		return &loader.InputError{Message: "the steering is for prompts only (its job has only_hook_prompt), and cannot steer what is generated"}
	}
	return nil
}

// at is the strength at a position of a text.
func (a Active) at(position, prompt int) float64 {
	inPrompt := position < prompt
	if position < a.From ||
		!inPrompt && (a.Steering.PromptOnly || a.Phase == PromptTokens) ||
		inPrompt && a.Phase == GeneratedTokens {
		return 0
	}
	return a.Strength
}

// A factor is how strongly a token is steered by one steering.
type factor struct {
	*lowered
	strength float32 // not 0
}

func (f factor) same(other factor) bool { return f.id == other.id && f.strength == other.strength }

// factorsOf is how uses steer the token at a position of a text.
func factorsOf(uses []use, at, prompt int) (factors []factor) {
	for i := 0; i < len(uses); {
		l, strength := uses[i].lowered, 0.0
		for ; i < len(uses) && uses[i].id == l.id; i++ {
			strength += uses[i].at(at, prompt)
		}
		if f := (factor{l, float32(strength)}); f.strength != 0 {
			factors = append(factors, f)
		}
	}
	return factors
}

// use is how a token would be steered now.
func (s *Slot) use(at int) []factor { return factorsOf(s.uses, at, s.prompt) }

// factorsAt is how the next decode steers a token: one that was computed before, and that
// the cache has lost, as it was then.
func (s *Slot) factorsAt(at int) []factor {
	if at < len(s.factors) {
		return s.factors[at]
	}
	return s.use(at)
}
