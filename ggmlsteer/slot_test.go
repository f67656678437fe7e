package ggmlsteer

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// In llama.cpp's ordinary decoding two texts in one batch, under vectors of their own, have
// bit for bit the logits that each has alone, prompts of any length included: every kernel works
// row by row, and a prompt's batch is its own. In float32 the products of attention are summed over the cells of both, and so are rounded otherwise,
// with or without steering. In either, a text is the same bit for bit whatever steers the other.
func TestSlotsUnderTheirOwnSteering(t *testing.T) {
	for _, precision := range []Precision{Ordinary, F32} {
		m, err := open("../testdata/demo/model.gguf", Options{})
		require.NoError(t, err)
		t.Cleanup(func() { m.Close() })
		random := rand.New(rand.NewPCG(20, 20))
		texts := [2][]Token{randomTokens(random, 46, m.info.Vocab), randomTokens(random, 30, m.info.Vocab)}
		prompts := [2]int{40, 22} // more and less than what kernels take for a large batch
		v, w := randomVector(random, m.info.Embd, 8), randomVector(random, m.info.Embd, 8)
		matrix := func() [][]float32 { return [][]float32{randomVector(random, m.info.Embd, 0.5)} }
		steerings := [2][]Active{
			{{Steering: added(map[int][]float32{2: v}), Strength: 1}, {Steering: added(map[int][]float32{2: w, 3: v}), Strength: 0.5, Phase: GeneratedTokens}},
			{
				{Steering: added(map[int][]float32{2: w}), Strength: -1, Phase: PromptTokens},
				{Steering: &loader.Steering{Kind: loader.Affine, Layers: []int{3}, Embd: m.info.Embd, Params: []loader.Parameters{{Vector: v, Left: matrix(), Right: matrix()}}}, Strength: 1},
			},
		}
		logits := func(use [2]bool, steer [2]bool) (rows [2][][]float32) {
			d := newDecoder(t, m, DecoderOptions{Context: 64, Sequences: 2, Precision: precision})
			for i, s := range d.slots {
				if steer[i] {
					require.NoError(t, s.Steer(steerings[i]...))
				}
				if use[i] {
					_, err := s.Set(texts[i][:prompts[i]], prompts[i])
					require.NoError(t, err)
				}
			}
			for at := range 7 {
				require.NoError(t, d.Decode(context.Background()))
				for i, s := range d.slots {
					if use[i] && prompts[i]+at <= len(texts[i]) {
						rows[i] = append(rows[i], slotLogits(t, s))
						if prompts[i]+at < len(texts[i]) {
							require.NoError(t, s.Append(texts[i][prompts[i]+at]))
						}
					}
				}
			}
			return rows
		}
		both := [2]bool{true, true}
		together := logits(both, both)
		for i := range texts {
			var one [2]bool
			one[i] = true
			alone := logits(one, one)[i]
			require.Len(t, alone, 7)
			nearRows(t, alone, together[i], "alone and together")
			if precision == Ordinary {
				require.Equal(t, alone, together[i])
			}
			require.Equal(t, together[i], logits(both, one)[i], "the other unsteered")
			requireApart(t, alone, logits(both, [2]bool{})[i])
		}
		for at := range 7 { // nor does the batch hold the same text twice
			require.NotEqual(t, together[0][at], together[1][at])
		}

		// two vectors at one layer, of which the other slot has one, add up in the same order
		d := newDecoder(t, m, DecoderOptions{Context: 64, Sequences: 2, Precision: precision})
		sum := func(other ...Active) []float32 {
			d.Clear()
			require.NoError(t, d.Slot(0).Steer(other...))
			require.NoError(t, d.Slot(1).Steer(Active{Steering: added(map[int][]float32{2: v}), Strength: 0.7}, Active{Steering: added(map[int][]float32{2: w}), Strength: 0.9}))
			for i, s := range d.slots {
				_, err := s.Set(texts[i], prompts[i])
				require.NoError(t, err)
			}
			require.NoError(t, d.Decode(context.Background()))
			return slotLogits(t, d.Slot(1))
		}
		alone := sum()
		require.Equal(t, alone, sum(Active{Steering: added(map[int][]float32{2: v}), Strength: 1}))
		require.Equal(t, alone, sum(Active{Steering: added(map[int][]float32{2: w}), Strength: 1}))
	}
}

// What the slot keeps when its text or its steering changes, and that it then gives what a
// decoder gives that never had anything else.
func TestKeptPrefixes(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		const prompt, length = 10, 14
		random := rand.New(rand.NewPCG(21, 21))
		tokens := randomTokens(random, length, f.Vocabulary)
		other := slices.Clone(tokens)
		other[4] = (other[4] + 1) % Token(f.Vocabulary)
		layer := f.Layers / 2
		v := randomVector(random, f.Width, 3)
		of := func(strength float64, phase Phase, from int) Active {
			return Active{Steering: added(map[int][]float32{layer: slices.Clone(v)}), Strength: strength, Phase: phase, From: from}
		}
		w := Active{Steering: added(map[int][]float32{0: randomVector(random, f.Width, 3)}), Strength: 1}
		promptOnly := of(1, EveryToken, 0)
		promptOnly.Steering.PromptOnly = true
		elsewhere := Active{Steering: added(map[int][]float32{layer + 1: v}), Strength: 1}
		for name, test := range map[string]struct {
			before, after []Active
			tokens        []Token // after; before they are tokens
			prompt        int
			kept          int
		}{
			"nothing changes":                 {[]Active{of(1, EveryToken, 0)}, []Active{of(1, EveryToken, 0)}, tokens, prompt, length - 1},
			"unsteered":                       {nil, nil, tokens, prompt, length - 1},
			"another strength":                {[]Active{of(1, EveryToken, 0)}, []Active{of(0.5, EveryToken, 0)}, tokens, prompt, 0},
			"another layer":                   {[]Active{of(1, EveryToken, 0)}, []Active{elsewhere}, tokens, prompt, 0},
			"another vector":                  {[]Active{of(1, EveryToken, 0)}, []Active{w}, tokens, prompt, 0},
			"one more":                        {[]Active{of(1, EveryToken, 0)}, []Active{of(1, EveryToken, 0), w}, tokens, prompt, 0},
			"one more of strength 0":          {[]Active{w}, []Active{w, of(0, EveryToken, 0)}, tokens, prompt, length - 1},
			"none":                            {[]Active{of(1, EveryToken, 0)}, nil, tokens, prompt, 0},
			"another order":                   {[]Active{of(1, EveryToken, 0), w}, []Active{w, of(1, EveryToken, 0)}, tokens, prompt, length - 1},
			"the same in two halves":          {[]Active{of(1, EveryToken, 0)}, []Active{of(0.5, EveryToken, 0), of(0.5, EveryToken, 0)}, tokens, prompt, length - 1},
			"another token":                   {[]Active{w}, []Active{w}, other, prompt, 4},
			"a longer text":                   {[]Active{w}, []Active{w}, append(slices.Clone(tokens), 3, 4), prompt, length},
			"a shorter text":                  {[]Active{w}, []Active{w}, tokens[:8], prompt, 7},
			"generated tokens more strongly":  {[]Active{of(1, GeneratedTokens, 0)}, []Active{of(2, GeneratedTokens, 0)}, tokens, prompt, prompt},
			"generated tokens no longer":      {[]Active{of(1, GeneratedTokens, 0), w}, []Active{w}, tokens, prompt, prompt},
			"the prompt only, more strongly":  {[]Active{of(1, PromptTokens, 0)}, []Active{of(2, PromptTokens, 0)}, tokens, prompt, 0},
			"the prompt, as the file says":    {[]Active{of(1, PromptTokens, 0)}, []Active{promptOnly}, tokens, prompt, length - 1},
			"the prompt, and now everything":  {[]Active{of(1, PromptTokens, 0)}, []Active{of(1, EveryToken, 0)}, tokens, prompt, prompt},
			"what was generated is prompt":    {[]Active{of(1, PromptTokens, 0)}, []Active{of(1, PromptTokens, 0)}, tokens, length, prompt},
			"what was generated, by now not":  {[]Active{of(1, GeneratedTokens, 0)}, []Active{of(1, GeneratedTokens, 0)}, tokens, length, prompt},
			"a longer prompt does not matter": {[]Active{w}, []Active{w}, tokens, length, length - 1},
			"from an earlier token":           {[]Active{of(1, EveryToken, 7)}, []Active{of(1, EveryToken, 5)}, tokens, prompt, 5},
			"from a later token":              {[]Active{of(1, EveryToken, 7)}, []Active{of(1, EveryToken, 12)}, tokens, prompt, 7},
			"from the third generated token":  {[]Active{of(1, GeneratedTokens, 12)}, []Active{of(-1, GeneratedTokens, 12)}, tokens, prompt, 12},
		} {
			t.Run(name, func(t *testing.T) {
				// the other slot's tokens lie between
				d := newDecoder(t, m, DecoderOptions{Context: 20, Sequences: 2, Precision: F32})
				s := d.Slot(0)
				require.NoError(t, s.Steer(test.before...))
				kept, err := s.Set(tokens[:prompt], prompt)
				require.NoError(t, err)
				require.Zero(t, kept)
				for at := prompt; at <= length; at++ {
					require.NoError(t, d.Slot(1).Append(tokens[at%length]))
					require.NoError(t, d.Decode(context.Background()))
					if at < length {
						require.NoError(t, s.Append(tokens[at]))
					}
				}
				require.NoError(t, s.Steer(test.after...))
				kept, err = s.Set(test.tokens, test.prompt)
				require.NoError(t, err)
				require.Equal(t, test.kept, kept)
				require.NoError(t, d.Decode(context.Background()))
				require.Equal(t, test.tokens, s.Tokens())

				fresh := newDecoder(t, m, DecoderOptions{Context: 20, Precision: F32})
				require.NoError(t, fresh.Steer(test.after...))
				expected := textLogits(t, fresh, test.tokens, test.prompt)
				nearEach(t, expected[len(expected)-1], slotLogits(t, s), logitTolerance, "after the change")
			})
		}
	})
}

// A vector that is changed in place between two tokens is another one, though its address
// and the graph's shape stay: llama.cpp's own control vectors compare the address, and went
// on with the old numbers. And so is one that is changed between two texts.
func TestVectorChangedInPlace(t *testing.T) {
	m, f := openFixture(t, "gemma2")
	random := rand.New(rand.NewPCG(22, 22))
	tokens := randomTokens(random, 12, f.Vocabulary)
	v, w := randomVector(random, f.Width, 3), randomVector(random, f.Width, 3)
	inPlace := added(map[int][]float32{2: slices.Clone(v)})
	d := newDecoder(t, m, DecoderOptions{Context: 20, Precision: F32})
	require.NoError(t, d.Steer(Active{Steering: inPlace, Strength: 1}))
	found := nextLogits(t, d, tokens[:6])
	copy(inPlace.Params[0].Vector, w)
	require.NoError(t, d.Steer(Active{Steering: inPlace, Strength: 1}))
	found = append(found, nextLogits(t, d, tokens[6:])...)

	// the same on one that never changes: −v from token 6 on, and w
	fresh := newDecoder(t, m, DecoderOptions{Context: 20, Precision: F32})
	steerV, steerW := added(map[int][]float32{2: v}), added(map[int][]float32{2: w})
	require.NoError(t, fresh.Steer(Active{Steering: steerV, Strength: 1}, Active{Steering: steerV, Strength: -1, From: 6}, Active{Steering: steerW, Strength: 1, From: 6}))
	nearRows(t, textLogits(t, fresh, tokens, 0), found, "changed in place")
	require.NoError(t, fresh.Steer(Active{Steering: steerV, Strength: 1}))
	requireApart(t, textLogits(t, fresh, tokens, 0), found)

	kept, err := d.Slot(0).Set(tokens, 0)
	require.NoError(t, err)
	require.Zero(t, kept, "the first tokens were steered with v")
}

// Phases and changes of strength between tokens are factors of a session's tokens.
func TestPhases(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		const prompt = 7
		random := rand.New(rand.NewPCG(23, 23))
		tokens := randomTokens(random, textLength, f.Vocabulary)
		layer := f.Layers / 2
		v := randomVector(random, f.Width, 4)
		steering := added(map[int][]float32{layer: v})
		for name, test := range map[string]struct {
			active []Active
			factor func(at int) float32
		}{
			"the prompt":        {[]Active{{Steering: steering, Strength: 1.5, Phase: PromptTokens}}, func(at int) float32 { return map[bool]float32{true: 1.5}[at < prompt] }},
			"what is generated": {[]Active{{Steering: steering, Strength: 1.5, Phase: GeneratedTokens}}, func(at int) float32 { return map[bool]float32{true: 1.5}[at >= prompt] }},
			"from a token on":   {[]Active{{Steering: steering, Strength: 1.5, From: 3}}, func(at int) float32 { return map[bool]float32{true: 1.5}[at >= 3] }},
			"a slice of the prompt": {[]Active{{Steering: steering, Strength: 1.5, Phase: PromptTokens, From: 3}}, func(at int) float32 {
				return map[bool]float32{true: 1.5}[at >= 3 && at < prompt]
			}},
			"late": {[]Active{{Steering: steering, Strength: 1.5, Phase: GeneratedTokens, From: 12}}, func(at int) float32 { return map[bool]float32{true: 1.5}[at >= 12] }},
			"prompt and rest each": {[]Active{{Steering: steering, Strength: -1, Phase: PromptTokens}, {Steering: steering, Strength: 2, Phase: GeneratedTokens}}, func(at int) float32 {
				return map[bool]float32{true: -1, false: 2}[at < prompt]
			}},
		} {
			t.Run(name, func(t *testing.T) {
				factors := make([]float32, len(tokens))
				for at := range factors {
					factors[at] = test.factor(at)
				}
				s, err := m.NewSession(SessionOptions{Layers: []int{layer}, Vectors: 1, Coldness: 1}, []Sequence{{Tokens: tokens, Prompt: 1, Vector: [][]float32{factors}}})
				require.NoError(t, err)
				defer s.Close()
				probs, err := s.Forward(context.Background(), []Operation{{Vectors: [][]float32{v}}})
				require.NoError(t, err)

				d := newDecoder(t, m, DecoderOptions{Context: textLength, Precision: F32})
				require.NoError(t, d.Steer(test.active...))
				whole := textLogits(t, d, tokens, prompt)
				_, err = d.Slot(0).Set(tokens[:1], prompt) // token by token, from the prompt's first
				require.NoError(t, err)
				require.NoError(t, d.Decode(context.Background()))
				cached := append([][]float32{slotLogits(t, d.Slot(0))}, nextLogits(t, d, tokens[1:])...)
				for i, p := range probs[0] {
					near(t, p.Log, probOf(whole[i], tokens[i+1], 1).Log, logProbTolerance, "log p of token %d", i+1)
					near(t, p.Log, probOf(cached[i], tokens[i+1], 1).Log, logProbTolerance, "log p of token %d, token by token", i+1)
				}
			})
		}
	})
}

// Three slots are set, continued and steered in any order, and give at any time what a
// session gives with each token's strengths. The texts are so long, against the cache, that
// models with a sliding window lose what is out of sight, and have to compute it again.
func TestSlotsInAnyOrder(t *testing.T) {
	lost := 0
	eachFixture(t, func(t *testing.T, m *Model, f *fixture) {
		const slots, size, rounds = 3, 100, 120
		random := rand.New(rand.NewPCG(24, 24))
		layer := f.Layers / 2
		vectors := [][]float32{randomVector(random, f.Width, 3), randomVector(random, f.Width, 3)}
		ctx := context.Background()
		ended, end := context.WithCancel(ctx)
		end()
		d := newDecoder(t, m, DecoderOptions{Context: size, Sequences: slots, Precision: F32})
		type model struct {
			tokens    []Token
			factors   [2][]float32 // of each token
			strengths [2]float64
			from      int // of the first vector
		}
		factor := func(s *model, k, at int) float32 {
			if k == 0 && at < s.from {
				return 0
			}
			return float32(s.strengths[k])
		}
		var models [slots]model
		base := randomTokens(random, size, f.Vocabulary)
		for round := range rounds {
			i := random.IntN(slots)
			slot, s := d.Slot(i), &models[i]
			var did string
			switch what := random.IntN(4); {
			case what == 0:
				s.strengths = [2]float64{float64(random.IntN(3)-1) / 2, float64(random.IntN(2))}
				s.from = random.IntN(2) * random.IntN(20)
				did = fmt.Sprintf("steered %v from %d", s.strengths, s.from)
				require.NoError(t, slot.Steer(
					Active{Steering: added(map[int][]float32{layer: vectors[0]}), Strength: s.strengths[0], From: s.from},
					Active{Steering: added(map[int][]float32{layer: vectors[1]}), Strength: s.strengths[1]}))
				continue
			case what == 1 || len(s.tokens) >= size-20:
				tokens := slices.Clone(base[:1+random.IntN(size-20)])
				if random.IntN(2) == 0 { // what it has, and a bit else
					tokens = slices.Clone(s.tokens[:random.IntN(len(s.tokens)+1)])
					tokens = append(tokens, randomTokens(random, 1+random.IntN(3), f.Vocabulary)...)
				}
				right := 0
				for right < min(slot.computed, len(tokens)-1) && tokens[right] == s.tokens[right] && s.factors[0][right] == factor(s, 0, right) && s.factors[1][right] == factor(s, 1, right) {
					right++
				}
				kept, err := slot.Set(tokens, random.IntN(len(tokens)))
				require.NoError(t, err)
				did = fmt.Sprintf("set %d tokens, of which %d were right and %d are kept", len(tokens), right, kept)
				if kept != right {
					require.Zero(t, kept)
					lost++
				}
				s.tokens = tokens
				for k := range s.factors {
					s.factors[k] = s.factors[k][:kept]
				}
			default:
				tokens := randomTokens(random, 1+random.IntN(20), f.Vocabulary)
				did = fmt.Sprintf("appended %d tokens", len(tokens))
				require.NoError(t, slot.Append(tokens...))
				s.tokens = append(s.tokens, tokens...)
			}
			for k := range s.factors {
				for at := len(s.factors[k]); at < len(s.tokens); at++ {
					s.factors[k] = append(s.factors[k], factor(s, k, at))
				}
			}
			if random.IntN(4) == 0 {
				require.ErrorIs(t, d.Decode(ended), context.Canceled)
			}
			require.NoError(t, d.Decode(ctx))
			found := slotLogits(t, slot)
			require.Equal(t, s.tokens, slot.Tokens())
			probe := Token(random.IntN(f.Vocabulary))
			session, err := m.NewSession(SessionOptions{Layers: []int{layer}, Vectors: 2, Coldness: 1}, []Sequence{{Tokens: append(slices.Clone(s.tokens), probe), Prompt: len(s.tokens),
				Vector: [][]float32{append(slices.Clone(s.factors[0]), 0), append(slices.Clone(s.factors[1]), 0)}}})
			require.NoError(t, err)
			probs, err := session.Forward(ctx, []Operation{{Vectors: vectors}})
			require.NoError(t, err)
			require.NoError(t, session.Close())
			near(t, probs[0][0].Log, probOf(found, probe, 1).Log, logProbTolerance, "round %d, slot %d: %s", round, i, did)
		}
	})
	t.Logf("%d prefixes were right and lost to a sliding window", lost)
	require.Positive(t, lost)
}

// What the cache has lost in a decode that failed is computed again as it was, and not as
// the slot is steered by now.
func TestLostTokens(t *testing.T) {
	m, f := openFixture(t, "gemma2")
	random := rand.New(rand.NewPCG(25, 25))
	tokens := randomTokens(random, 12, f.Vocabulary)
	steering := added(map[int][]float32{2: randomVector(random, f.Width, 3)})
	logits := func(lose, steered bool) []float32 {
		d := newDecoder(t, m, DecoderOptions{Context: 20, Precision: F32})
		if steered {
			require.NoError(t, d.Steer(Active{Steering: steering, Strength: 1}))
		}
		nextLogits(t, d, tokens[:8])
		require.NoError(t, d.Steer())
		if s := d.Slot(0); lose {
			s.computed = s.keep(0)
			require.Zero(t, s.computed)
		}
		rows := nextLogits(t, d, tokens[8:])
		return rows[len(rows)-1]
	}
	expected := logits(false, true)
	nearEach(t, expected, logits(true, true), logitTolerance, "computed again")
	requireApart(t, [][]float32{expected}, [][]float32{logits(false, false)})
}

// One slot's mistakes are its own.
func TestSlotErrors(t *testing.T) {
	m, f := openFixture(t, "llama")
	ctx := context.Background()
	d := newDecoder(t, m, DecoderOptions{Context: 8, Sequences: 2, Precision: F32})
	good, bad := d.Slot(0), d.Slot(1)
	_, err := good.Set([]Token{1, 2, 3}, 3)
	require.NoError(t, err)
	_, err = bad.Set(make([]Token, 9), 9)
	inputError(t, err, "9 tokens", "context of 8")
	_, err = bad.Set([]Token{1, Token(f.Vocabulary)}, 2)
	inputError(t, err, fmt.Sprintf("token %d", f.Vocabulary))
	inputError(t, bad.Append(-1), "token -1")
	only := added(map[int][]float32{1: ones(f.Width)})
	only.PromptOnly = true
	for what, a := range map[string]Active{
		"missing":           {},
		"strength is NaN":   {Steering: only, Strength: math.NaN()},
		"strength is +Inf":  {Steering: only, Strength: math.Inf(1)},
		"strength is 1e+39": {Steering: only, Strength: 1e39},
		"no phase 3":        {Steering: only, Phase: 3},
		"no phase -1":       {Steering: only, Phase: -1},
		"no position -1":    {Steering: only, From: -1},
		"prompts only":      {Steering: only, Phase: GeneratedTokens},
	} {
		inputError(t, bad.Steer(a), what)
	}
	_, err = good.Logits()
	require.ErrorIs(t, err, errNoLogits)
	require.NoError(t, d.Decode(ctx))
	expected := slotLogits(t, good)
	_, err = bad.Logits()
	require.ErrorIs(t, err, errNoLogits)
	require.NoError(t, d.Decode(ctx), "nothing to compute")
	require.Equal(t, expected, slotLogits(t, good), "it is still that of the last Decode")
	require.NoError(t, good.Append(4))
	_, err = good.Next(nil)
	require.ErrorIs(t, err, errNoLogits)
	kept, err := good.Set(nil, 0)
	require.NoError(t, err)
	require.Zero(t, kept)
	require.NoError(t, bad.Append(1))
	require.NoError(t, d.Decode(ctx))
	_, err = good.Logits()
	require.ErrorIs(t, err, errNoLogits)

	require.NoError(t, d.Close())
	require.ErrorIs(t, d.Decode(ctx), errDecoderClosed)
	require.ErrorIs(t, good.Steer(), errDecoderClosed)
	require.ErrorIs(t, good.Append(1), errDecoderClosed)
	_, err = good.Set([]Token{1}, 1)
	require.ErrorIs(t, err, errDecoderClosed)
	_, err = good.Next(nil)
	require.ErrorIs(t, err, errDecoderClosed)
}
