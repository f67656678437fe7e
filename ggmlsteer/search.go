package ggmlsteer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"

	"github.com/llsteer/llsteer/loader"
)

// maxSequences is how many a decoder can have side by side: llama.cpp's LLAMA_MAX_SEQ.
const maxSequences = 256

// Search finds likely completions of a prompt by beam search over tokens, best
// first: in each round all continuations of all beams by one token compete, and
// the best o.Beams stay. A beam that ended its generation stays as it is and competes
// with the score it has. Steerings steer the prompt and the contrast alike.
func (m *Model) Search(ctx context.Context, prompt []Token, o SearchOptions, precision Precision, active ...Active) ([]Completion, error) {
	s := &search{SearchOptions: o, prompts: [][]Token{prompt}, ends: m.ends}
	if o.Contrast != nil {
		s.prompts = append(s.prompts, o.Contrast)
	}
	return s.run(ctx, m, precision, active)
}

// A search has one decoder for all. Beam i of a round is continued by the decoder's
// slot beams[i].slot, and after the contrast by the same one in a second half.
type search struct {
	SearchOptions
	prompts [][]Token
	ends    func(Token) bool
	decoder *Decoder
	beams   []*beam
}

type beam struct {
	Completion
	score score
	ended bool
	slot  int // that holds its tokens; for the contrast the same in the second half
}

func (s *search) check() error {
	switch {
	case s.Beams < 1 || s.Beams > maxSequences/len(s.prompts):
		return &loader.InputError{Message: fmt.Sprintf("a search has from 1 to %d beams (with a contrast %d), not %d", maxSequences, maxSequences/2, s.Beams)}
	case s.Further < 0:
		return &loader.InputError{Message: fmt.Sprintf("a search cannot go on for %d tokens", s.Further)}
	case !(s.Coldness > 0) || math.IsInf(s.Coldness, 1):
		return &loader.InputError{Message: fmt.Sprintf("the coldness is %v, expected a number above 0", s.Coldness)}
	}
	for _, prompt := range s.prompts {
		if len(prompt) == 0 {
			return &loader.InputError{Message: "a prompt has no tokens"}
		}
	}
	return nil
}

func (s *search) run(ctx context.Context, m *Model, precision Precision, active []Active) ([]Completion, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	options := DecoderOptions{Sequences: s.Beams * len(s.prompts), Precision: precision}
	for _, prompt := range s.prompts {
		options.Context = max(options.Context, len(prompt)+s.Further)
		options.cells += len(prompt) + s.Beams*s.Further
	}
	var err error
	if s.decoder, err = m.NewDecoder(options); err != nil {
		return nil, err
	}
	defer s.decoder.Close()
	if err := s.decoder.Steer(active...); err != nil {
		return nil, err
	}
	defer runtime.KeepAlive(s.decoder) // its logits are read between the calls
	if err := s.readPrompts(ctx); err != nil {
		return nil, err
	}
	for round := 0; ; round++ {
		chosen, err := s.choose()
		if err != nil {
			return nil, err
		}
		s.beams = chosen
		if round == s.Further || !slices.ContainsFunc(chosen, func(b *beam) bool { return !b.ended }) {
			break
		}
		if err := s.goOn(ctx); err != nil {
			return nil, err
		}
	}
	found := make([]Completion, len(s.beams))
	for i, b := range s.beams {
		found[i] = b.Completion
	}
	return found, nil
}

// readPrompts makes the one beam without tokens.
func (s *search) readPrompts(ctx context.Context) error {
	for half, prompt := range s.prompts {
		if _, err := s.slot(half, 0).Set(prompt, len(prompt)); err != nil {
			return err
		}
	}
	s.beams = []*beam{{}}
	return s.decoder.Decode(ctx)
}

// slot is where a beam's tokens are after the prompt, or after the contrast.
func (s *search) slot(half, slot int) *Slot { return s.decoder.slots[half*s.Beams+slot] }

// goOn decodes the last token of each beam, in the sequences of its parent: a copy of
// them, where another child has them already.
func (s *search) goOn(ctx context.Context) error {
	taken := make([]bool, s.Beams)
	var copies []*beam
	for _, b := range s.beams {
		switch {
		case b.ended:
		case taken[b.slot]:
			copies = append(copies, b)
		default:
			taken[b.slot] = true
		}
	}
	for slot := range taken {
		if !taken[slot] && len(copies) > 0 {
			for half := range s.prompts {
				s.slot(half, slot).copy(s.slot(half, copies[0].slot))
			}
			copies[0].slot, copies = slot, copies[1:]
		}
	}
	for half := range s.prompts {
		for _, b := range s.beams {
			if !b.ended {
				if err := s.slot(half, b.slot).Append(b.Tokens[len(b.Tokens)-1]); err != nil {
					return err
				}
			}
		}
	}
	return s.decoder.Decode(ctx)
}

// choose is the best of all beams that ended and all continuations of the others. Of
// equals the one that comes first stays.
func (s *search) choose() ([]*beam, error) {
	var best []*beam
	add := func(of score, candidate func() *beam) {
		if len(best) == s.Beams {
			if s.order(of, best[len(best)-1].score) >= 0 {
				return
			}
			best = best[:len(best)-1]
		}
		at := len(best)
		for at > 0 && s.order(of, best[at-1].score) < 0 {
			at--
		}
		best = slices.Insert(best, at, candidate())
	}
	for _, b := range s.beams {
		if b.ended {
			add(b.score, func() *beam { return b })
			continue
		}
		next, err := s.following(b)
		if err != nil {
			return nil, err
		}
		for token := range next.rows[0] {
			p := next.score(token)
			total := p
			if s.Total && len(b.Tokens) > 0 {
				total = b.score.times(p)
			}
			add(total, func() *beam {
				return &beam{
					Completion: Completion{append(slices.Clone(b.Tokens), Token(token)), append(slices.Clone(b.Probs), p.value())},
					score:      total, ended: s.ends(Token(token)), slot: b.slot,
				}
			})
		}
	}
	return best, nil
}

// order is negative if a is better than b.
func (s *search) order(a, b score) int {
	if s.Reverse {
		return a.compare(b)
	}
	return b.compare(a)
}

// following are the probabilities of the token after a beam.
func (s *search) following(b *beam) (*distributions, error) {
	d := &distributions{coldness: s.Coldness}
	for half := range s.prompts {
		logits, err := s.slot(half, b.slot).Logits()
		if err != nil {
			return nil, err
		}
		top := math.Inf(-1)
		for _, z := range logits {
			if z != z {
				return nil, errNotANumber
			}
			top = math.Max(top, float64(z))
		}
		sum := 0.0
		for _, z := range logits {
			sum += math.Exp(s.Coldness * (float64(z) - top))
		}
		d.rows = append(d.rows, logits)
		d.tops = append(d.tops, top)
		d.logSums = append(d.logSums, math.Log(sum))
	}
	return d, nil
}

var errNotANumber = errors.New("a logit is not a number: the steering is too strong, or the model is damaged")

// distributions are those of one token, after the prompt and after the contrast.
type distributions struct {
	coldness      float64
	rows          [][]float32 // logits
	tops, logSums []float64
}

func (d *distributions) log(row, token int) float64 {
	return d.coldness*(float64(d.rows[row][token])-d.tops[row]) - d.logSums[row]
}

func (d *distributions) score(token int) score {
	log := d.log(0, token)
	if len(d.rows) == 1 {
		return score{1, log}
	}
	return difference(log, d.log(1, token))
}

// A score is sign·exp(log): a probability, a difference of two, or a product of such,
// which do not become 0 by being small.
type score struct {
	sign int
	log  float64
}

// difference is exp(a) − exp(b).
func difference(a, b float64) score {
	switch {
	case a > b:
		return score{1, a + math.Log(-math.Expm1(b-a))}
	case a < b:
		return score{-1, b + math.Log(-math.Expm1(a-b))}
	}
	return score{0, math.Inf(-1)}
}

func (s score) times(t score) score { return score{s.sign * t.sign, s.log + t.log} }

func (s score) value() float64 { return float64(s.sign) * math.Exp(s.log) }

func (s score) compare(t score) int {
	if s.sign != t.sign || s.sign == 0 {
		return cmp.Compare(s.sign, t.sign)
	}
	return s.sign * cmp.Compare(s.log, t.log)
}
