package ggmlsteer

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// uncleaned opens a model that the test itself closes.
func uncleaned(t *testing.T, name string) (*Model, *fixture) {
	t.Helper()
	m, err := open(referenceFolder+name+".gguf", Options{})
	require.NoError(t, err)
	return m, readFixture(t, name)
}

func TestCloseTwice(t *testing.T) {
	m, f := uncleaned(t, "llama")
	c := f.caseNamed(t, "middle")
	s, err := m.NewSession(SessionOptions{Coldness: 1}, []Sequence{{Tokens: []Token{1, 2}, Prompt: 1}})
	require.NoError(t, err)
	d, err := m.NewDecoder(DecoderOptions{Context: 8})
	require.NoError(t, err)
	require.Equal(t, 2, m.users)
	for range 2 {
		require.NoError(t, s.Close())
		require.NoError(t, d.Close())
	}
	require.Zero(t, m.users)
	require.NotNil(t, m.c)
	for range 2 {
		require.NoError(t, m.Close())
		require.Nil(t, m.c)
	}

	ctx := context.Background()
	_, err = s.Forward(ctx, nil)
	require.ErrorIs(t, err, errSessionClosed)
	_, err = s.Backward(ctx, [][]float64{{1}})
	require.ErrorIs(t, err, errSessionClosed)
	require.Zero(t, s.BatchTokens())
	require.ErrorIs(t, d.Steer(), errDecoderClosed)
	d.Clear()
	_, err = d.Logits(ctx, []Token{1}, 1)
	require.ErrorIs(t, err, errDecoderClosed)
	_, err = d.Generate(ctx, [][]Token{{1}}, GenerateOptions{Tokens: 1}, nil)
	require.ErrorIs(t, err, errDecoderClosed)
	for what, use := range map[string]func() error{
		"NewSession": func() error {
			_, err := m.NewSession(SessionOptions{Coldness: 1}, []Sequence{{Tokens: []Token{1, 2}, Prompt: 1}})
			return err
		},
		"NewDecoder":     func() error { _, err := m.NewDecoder(DecoderOptions{Context: 8}); return err },
		"Logprobs":       func() error { _, err := m.Logprobs(ctx, []Token{1, 2}, 1, 1, F32); return err },
		"Activations":    func() error { _, err := m.Activations(ctx, []Token{1}, []int{0}); return err },
		"StreamNorms":    func() error { _, err := m.StreamNorms(ctx, [][]Token{{1}}, []int{0}); return err },
		"Differentiable": func() error { return m.Differentiable([]int{0}) },
		"Tokenize":       func() error { _, err := m.Tokenize("a", false); return err },
		"Chat":           func() error { _, err := m.Chat("", "a"); return err },
	} {
		require.ErrorIs(t, use(), errClosed, what)
	}
	require.Empty(t, m.Text([]Token{1}, true))
	require.Equal(t, f.Width, m.Info().Embd)
	require.NotEmpty(t, c.Gradient)
}

// A model that is closed first lives until its sessions and decoders are closed.
func TestModelClosedFirst(t *testing.T) {
	m, f := uncleaned(t, "gemma2")
	c := f.caseNamed(t, "middle")
	layers, ops := operationsOf(c.Operations)
	s, err := m.NewSession(SessionOptions{Layers: layers, Vectors: 1, Coldness: f.Coldness}, []Sequence{{
		Tokens: f.Sequences[0].Tokens, Prompt: f.Sequences[0].Prompt, Vector: c.Strengths[0].Vectors,
	}})
	require.NoError(t, err)
	d, err := m.NewDecoder(DecoderOptions{Context: 32, Precision: F32})
	require.NoError(t, err)
	require.NoError(t, m.Close())
	require.NotNil(t, m.c)

	probs, err := s.Forward(context.Background(), ops)
	require.NoError(t, err)
	for j, p := range probs[0] {
		near(t, c.LogP[0][j], p.Log, logProbTolerance, "log p of target %d", j)
	}
	_, err = s.Backward(context.Background(), [][]float64{make([]float64, len(probs[0]))})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NotNil(t, m.c)
	rows, err := d.Logits(context.Background(), f.Logits.Tokens, 1)
	require.NoError(t, err)
	nearEach(t, f.Logits.Unsteered[1], rows[f.Logits.Positions[1]], logitTolerance, "logits")
	c2, err := d.Generate(context.Background(), [][]Token{f.Continuation.Prompt}, GenerateOptions{Tokens: 3}, nil)
	require.NoError(t, err)
	require.Len(t, c2[0].Tokens, 3)
	require.NoError(t, d.Close())
	require.Nil(t, m.c, "the last user frees the model")
}

// What nobody closes is freed once nobody can use it.
func TestForgottenHandles(t *testing.T) {
	m, _ := uncleaned(t, "llama")
	defer m.Close()
	func() {
		for range 3 {
			_, err := m.NewSession(SessionOptions{Coldness: 1}, []Sequence{{Tokens: []Token{1, 2}, Prompt: 1}})
			require.NoError(t, err)
			_, err = m.NewDecoder(DecoderOptions{Context: 8})
			require.NoError(t, err)
		}
		require.Equal(t, 6, m.users)
	}()
	require.Eventually(t, func() bool {
		runtime.GC()
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.users == 0
	}, 10*time.Second, 10*time.Millisecond)
}

// What is opened and closed over and over takes no memory in the end, to 20 kB a round: what
// the allocators of several threads keep varies by some. A sampler that was left would take 70.
func TestClosedMemory(t *testing.T) {
	f := readFixture(t, "gemma2")
	random := rand.New(rand.NewPCG(26, 26))
	ctx := context.Background()
	c := f.caseNamed(t, "middle")
	round := func() {
		m, _ := uncleaned(t, "gemma2")
		s, ops := c.session(t, m, f)
		probs, err := s.Forward(ctx, ops)
		require.NoError(t, err)
		_, _, slopes := c.evaluate(f, probs)
		_, err = s.Backward(ctx, slopes)
		require.NoError(t, err)
		d, err := m.NewDecoder(DecoderOptions{Context: 32, Sequences: 2, Precision: F32})
		require.NoError(t, err)
		for range 5 {
			require.NoError(t, d.Slot(0).Steer(everyKind(random, m)...))
			_, err = d.Generate(ctx, [][]Token{{1, 2}, {3}}, GenerateOptions{Tokens: 2, Sampling: Sampling{Temperature: 1, TopP: 1, RepeatPenalty: 1.1}}, nil)
			require.NoError(t, err)
		}
		require.Equal(t, 2, m.users)
		require.NoError(t, s.Close())
		require.NoError(t, d.Close())
		require.Zero(t, m.users)
		require.NoError(t, m.Close())
		require.Nil(t, m.c)
	}
	resident := func() int {
		debug.FreeOSMemory()
		data, err := os.ReadFile("/proc/self/statm")
		require.NoError(t, err)
		pages, err := strconv.Atoi(strings.Fields(string(data))[1])
		require.NoError(t, err)
		return pages * os.Getpagesize()
	}
	// What is kept for good, and where the allocator has put it, takes some rounds; what is lost
	// is lost in every round.
	const rounds, windows, most = 100, 5, 2 << 20
	for range rounds {
		round()
	}
	for window := 1; ; window++ {
		before := resident()
		for range rounds {
			round()
		}
		grown := resident() - before
		t.Logf("%d kB in %d rounds", grown>>10, rounds)
		if grown < most {
			return
		}
		require.Less(t, window, windows, "memory is lost")
	}
}

// Sessions and decoders of one model, all at once, each find what they find alone.
func TestConcurrentUse(t *testing.T) {
	m, f := openFixture(t, "gemma2")
	const rounds = 5
	var all sync.WaitGroup
	failed := make(chan error, 100)
	for _, name := range []string{"layer_0", "middle", "all", "middle_affine"} {
		c := f.caseNamed(t, name)
		s, ops := c.session(t, m, f)
		expected, err := s.Forward(context.Background(), ops)
		require.NoError(t, err)
		_, _, slopes := c.evaluate(f, expected)
		gradient, err := s.Backward(context.Background(), slopes)
		require.NoError(t, err)
		all.Go(func() {
			for range rounds {
				probs, err := s.Forward(context.Background(), ops)
				if err != nil || !slices.EqualFunc(probs, expected, slices.Equal) {
					failed <- errors.Join(errors.New(name+": other probabilities"), err)
					return
				}
				again, err := s.Backward(context.Background(), slopes)
				if err != nil || !slices.EqualFunc(rowsOf(again), rowsOf(gradient), slices.Equal) {
					failed <- errors.Join(errors.New(name+": another gradient"), err)
					return
				}
			}
		})
	}
	random := rand.New(rand.NewPCG(10, 10))
	for range 3 {
		tokens := randomTokens(random, textLength, f.Vocabulary)
		active := everyKind(random, m)
		expected, err := m.Logprobs(context.Background(), tokens, 3, 1, F32, active...)
		require.NoError(t, err)
		all.Go(func() {
			for range rounds {
				probs, err := m.Logprobs(context.Background(), tokens, 3, 1, F32, active...)
				if err != nil || !slices.Equal(probs, expected) {
					failed <- errors.Join(errors.New("other log-probabilities"), err)
					return
				}
			}
		})
	}
	all.Wait()
	close(failed)
	for err := range failed {
		require.NoError(t, err)
	}
}

// --- interruption -------------------------------------------------------------

// slowModel takes about a second for a text of slowContext tokens.
const slowContext = 1536

func slowModel(t *testing.T) *Model {
	kv, tensors := llamaModel(4, slowContext)
	return openModel(t, writeModel(t, "llama", kv, tensors))
}

var errStopped = errors.New("the test stops it")

// attempts to interrupt something: on a busy machine a timer may come too late.
const attempts = 5

// interrupted runs f to its end, and then cancelled after a tenth of that time: it is to
// return with the cause, long before it would have ended.
func interrupted(t *testing.T, f func(ctx context.Context) error) {
	t.Helper()
	began := time.Now()
	require.NoError(t, f(context.Background()))
	whole := time.Since(began)
	for range attempts {
		ctx, cancel := context.WithCancelCause(context.Background())
		stopped := make(chan time.Time, 1)
		time.AfterFunc(whole/10, func() {
			stopped <- time.Now()
			cancel(errStopped)
		})
		err := f(ctx)
		took := time.Since(<-stopped)
		if err != nil {
			require.ErrorIs(t, err, errStopped)
			// a context that has ended already stops it before it begins
			require.ErrorIs(t, f(ctx), errStopped)
			if took < whole/2 {
				return
			}
		}
	}
	require.Fail(t, "not interrupted", "in %d attempts, of what takes %v", attempts, whole)
}

func TestInterruption(t *testing.T) {
	m := slowModel(t)
	random := rand.New(rand.NewPCG(11, 11))
	tokens := randomTokens(random, slowContext, m.info.Vocab)
	short := tokens[:20]
	ctx := context.Background()

	t.Run("session", func(t *testing.T) {
		s, err := m.NewSession(SessionOptions{Layers: []int{1}, Vectors: 1, Coldness: 1}, []Sequence{{Tokens: tokens[:800], Prompt: 600, Vector: [][]float32{ones(800)}}})
		require.NoError(t, err)
		defer s.Close()
		ops := []Operation{{Vectors: [][]float32{randomVector(random, m.info.Embd, 1)}}}
		weights := [][]float64{slices.Repeat([]float64{1}, 200)}
		var probs [][]Prob
		forward := func(ctx context.Context) error {
			found, err := s.Forward(ctx, ops)
			if err == nil {
				probs = found
			}
			return err
		}
		backward := func(ctx context.Context) error {
			_, err := s.Backward(ctx, weights)
			return err
		}
		require.NoError(t, forward(ctx)) // with the part that is computed once
		expected := probs
		require.NoError(t, backward(ctx))
		gradient, err := s.Backward(ctx, weights)
		require.NoError(t, err)

		interrupted(t, forward)
		// no gradient of a point that was not evaluated
		inputError(t, backward(ctx), "needs a forward evaluation")
		require.NoError(t, forward(ctx))
		require.Equal(t, expected, probs)
		interrupted(t, backward)
		again, err := s.Backward(ctx, weights)
		require.NoError(t, err)
		require.Equal(t, gradient, again)
	})
	t.Run("the part that is computed once", func(t *testing.T) {
		probs := func(ctx context.Context, again bool) ([][]Prob, error) {
			s, err := m.NewSession(SessionOptions{Layers: []int{3}, Vectors: 1, Coldness: 1}, []Sequence{{Tokens: tokens[:800], Prompt: 799, Vector: [][]float32{ones(800)}}})
			require.NoError(t, err)
			defer s.Close()
			found, err := s.Forward(ctx, []Operation{{Vectors: [][]float32{ones(m.info.Embd)}}})
			if again { // after an interruption
				return s.Forward(context.Background(), []Operation{{Vectors: [][]float32{ones(m.info.Embd)}}})
			}
			return found, err
		}
		interrupted(t, func(ctx context.Context) error { _, err := probs(ctx, false); return err })
		expected, err := probs(ctx, false)
		require.NoError(t, err)
		stopped, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
		found, err := probs(stopped, true)
		require.NoError(t, err)
		require.Equal(t, expected, found)
	})
	for name, precision := range map[string]Precision{"decoder": Ordinary, "exact decoder": F32} {
		t.Run(name, func(t *testing.T) {
			d := newDecoder(t, m, DecoderOptions{Context: slowContext, Precision: precision})
			require.NoError(t, d.Steer(everyKind(random, m)...))
			expected := textLogits(t, d, short, 5)
			interrupted(t, func(ctx context.Context) error {
				_, err := d.Logits(ctx, tokens, 5)
				return err
			})
			require.Equal(t, expected, textLogits(t, d, short, 5))

			// in the middle of a text: what was decoded before stays
			tolerance := logitTolerance
			if precision == Ordinary {
				tolerance = 0.1 // a float16 cache
			}
			slot := d.Slot(0)
			many := tokens[:1000]
			began := time.Now()
			d.Clear()
			require.NoError(t, slot.Append(many...))
			require.NoError(t, d.Decode(ctx))
			whole := time.Since(began)
			// early, and after the first 512 tokens, which llama.cpp has put away then
			for _, part := range []float64{0.05, 0.8} {
				for attempt := 1; ; attempt++ {
					require.LessOrEqual(t, attempt, attempts, "not interrupted")
					d.Clear()
					slot.prompt = 5
					rows := nextLogits(t, d, short[:5])
					require.NoError(t, slot.Append(many...))
					stopped, cancel := context.WithTimeout(ctx, time.Duration(part*float64(whole)))
					began := time.Now()
					err := d.Decode(stopped)
					cancel()
					if err == nil {
						whole = time.Since(began) // others may have slowed down the first
						continue
					}
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.Equal(t, 5, slot.computed)
					kept, err := slot.Set(short[:6], 5)
					require.NoError(t, err)
					require.Equal(t, 5, kept)
					require.NoError(t, d.Decode(ctx))
					rows = append(append(rows, slotLogits(t, slot)), nextLogits(t, d, short[6:])...)
					for i := range rows {
						nearEach(t, expected[i], rows[i], tolerance, "logits %d", i)
					}
					break
				}
			}
		})
	}
	t.Run("activations", func(t *testing.T) {
		interrupted(t, func(ctx context.Context) error {
			_, err := m.Activations(ctx, tokens[:800], []int{0, 3})
			return err
		})
	})
}

// A generation that is interrupted returns what there is.
func TestInterruptedGeneration(t *testing.T) {
	m, f := openFixture(t, "llama")
	d := newDecoder(t, m, DecoderOptions{Context: 64, Precision: F32})
	o := GenerateOptions{Tokens: 12}
	whole, err := d.Generate(context.Background(), [][]Token{f.Continuation.Prompt}, o, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancelCause(context.Background())
	part, err := d.Generate(&endsAt{Context: ctx, calls: 5, cancel: func() { cancel(errStopped) }}, [][]Token{f.Continuation.Prompt}, o, nil)
	require.ErrorIs(t, err, errStopped)
	require.Len(t, part, 1)
	require.Equal(t, whole[0].Tokens[:4], part[0].Tokens, "the fifth step was not made")
	again, err := d.Generate(context.Background(), [][]Token{f.Continuation.Prompt}, o, nil)
	require.NoError(t, err)
	require.Equal(t, whole, again)
}

// endsAt ends when it is asked for the calls-th time whether it has ended.
type endsAt struct {
	context.Context
	calls  int
	cancel func()
}

func (c *endsAt) Err() error {
	if c.calls--; c.calls == 0 {
		c.cancel()
	}
	return c.Context.Err()
}

// --- what makes no sense --------------------------------------------------------

func TestHostileSessions(t *testing.T) {
	m, f := openFixture(t, "gemma2")
	good := func() (SessionOptions, []Sequence) {
		return SessionOptions{Layers: []int{1, 2}, Vectors: 1, Rank: 1, Coldness: 1},
			[]Sequence{{Tokens: []Token{1, 2, 3}, Prompt: 1, Vector: [][]float32{ones(3)}, Matrix: [][]float32{ones(3)}}}
	}
	for name, test := range map[string]struct {
		spoil func(o *SessionOptions, s []Sequence)
		says  string
	}{
		"layer behind the last":  {func(o *SessionOptions, _ []Sequence) { o.Layers[1] = f.Layers }, "layer 4 does not exist"},
		"negative layer":         {func(o *SessionOptions, _ []Sequence) { o.Layers[0] = -1 }, "layer -1 does not exist"},
		"a layer twice":          {func(o *SessionOptions, _ []Sequence) { o.Layers[1] = 1 }, "ascend"},
		"descending layers":      {func(o *SessionOptions, _ []Sequence) { o.Layers[0] = 3 }, "ascend"},
		"nothing to steer with":  {func(o *SessionOptions, s []Sequence) { o.Vectors, o.Rank, s[0].Vector = 0, 0, nil }, "needs vectors or a matrix"},
		"negative rank":          {func(o *SessionOptions, s []Sequence) { o.Rank = -1 }, "rank -1"},
		"coldness 0":             {func(o *SessionOptions, _ []Sequence) { o.Coldness = 0 }, "coldness"},
		"negative token":         {func(_ *SessionOptions, s []Sequence) { s[0].Tokens[0] = -1 }, "is -1, and the vocabulary has 260"},
		"token of no vocabulary": {func(_ *SessionOptions, s []Sequence) { s[0].Tokens[2] = 260 }, "is 260, and the vocabulary has 260"},
		"no prompt":              {func(_ *SessionOptions, s []Sequence) { s[0].Prompt = 0 }, "0 are its prompt"},
		"negative prompt":        {func(_ *SessionOptions, s []Sequence) { s[0].Prompt = -7 }, "-7 are its prompt"},
		"no completion":          {func(_ *SessionOptions, s []Sequence) { s[0].Prompt = 3 }, "3 are its prompt"},
		"prompt beyond the end":  {func(_ *SessionOptions, s []Sequence) { s[0].Prompt = 9 }, "9 are its prompt"},
		"no factors":             {func(_ *SessionOptions, s []Sequence) { s[0].Vector = nil }, "factors for 0 vectors"},
		"too many vectors":       {func(_ *SessionOptions, s []Sequence) { s[0].Vector = [][]float32{ones(3), ones(3)} }, "factors for 2 vectors"},
		"short factors":          {func(_ *SessionOptions, s []Sequence) { s[0].Vector[0] = ones(2) }, "3 tokens and 2 factors"},
		"no factors of a matrix": {func(_ *SessionOptions, s []Sequence) { s[0].Matrix = nil }, "and 0 rows, not 1 and 1"},
		"beyond the training context": {func(_ *SessionOptions, s []Sequence) {
			s[0] = Sequence{Tokens: make([]Token, 257), Prompt: 1, Vector: [][]float32{ones(257)}, Matrix: [][]float32{ones(257)}}
		}, "longer than the 256"},
	} {
		t.Run(name, func(t *testing.T) {
			o, sequences := good()
			test.spoil(&o, sequences)
			_, err := m.NewSession(o, sequences)
			require.ErrorContains(t, err, test.says)
		})
	}
	o, sequences := good()
	_, err := m.NewSession(o, nil)
	require.ErrorContains(t, err, "at least one sequence")

	s, err := m.NewSession(o, sequences)
	require.NoError(t, err)
	defer s.Close()
	ctx := context.Background()
	op := Operation{Vectors: [][]float32{ones(f.Width)}, Left: [][]float32{ones(f.Width)}, Right: [][]float32{ones(f.Width)}}
	wide := op
	wide.Right = [][]float32{ones(f.Width + 1)}
	_, err = s.Backward(ctx, [][]float64{{1, 1}})
	inputError(t, err, "needs a forward evaluation")
	for what, ops := range map[string][]Operation{"2 layers, not 1": nil, "not 1, 1 and 1": {op, {Vectors: op.Vectors}}, "the model's width is 40": {op, wide}} {
		_, err := s.Forward(ctx, ops)
		require.Error(t, err, what)
	}
	_, err = s.Forward(ctx, []Operation{op, op})
	require.NoError(t, err)
	_, err = s.Backward(ctx, nil)
	require.ErrorContains(t, err, "weights for 0 sequences")
	_, err = s.Backward(ctx, [][]float64{{1}})
	require.ErrorContains(t, err, "2 targets and 1 weights")
	_, err = s.Backward(ctx, [][]float64{{1, 1}})
	require.NoError(t, err)
}

func TestHostileDecoders(t *testing.T) {
	m, f := openFixture(t, "gemma2")
	ctx := context.Background()
	for what, o := range map[string]DecoderOptions{
		"at least one sequence": {}, "not 1 of -5": {Context: -5}, "not -1 of 8": {Context: 8, Sequences: -1}, "not 100000 of 8": {Context: 8, Sequences: 100000}, "longer than the 256": {Context: 257},
	} {
		_, err := m.NewDecoder(o)
		inputError(t, err, what)
	}
	d := newDecoder(t, m, DecoderOptions{Context: 8, Precision: F32})
	unsteered := textLogits(t, d, []Token{1, 2, 3}, 1)
	for what, s := range map[string]*loader.Steering{
		"layer 5":                 {Kind: loader.Add, Layers: []int{5}, Params: []loader.Parameters{{Vector: ones(f.Width)}}},
		"layer -1":                {Kind: loader.Add, Layers: []int{-1, 0}, Shared: true, Params: []loader.Parameters{{Vector: ones(f.Width)}}},
		"layer 9":                 {Kind: loader.Add, Layers: []int{9, 0}, Shared: true, Params: []loader.Parameters{{Vector: ones(f.Width)}}},
		"the model's width is 40": added(map[int][]float32{1: ones(f.Width - 1)}),
		"3 numbers in a row":      {Kind: loader.Affine, Layers: []int{1}, Params: []loader.Parameters{{Vector: ones(f.Width), Left: [][]float32{ones(f.Width)}, Right: [][]float32{ones(3)}}}},
		"a steering at layer 2 ":  {Kind: loader.Affine, Layers: []int{2}, Params: []loader.Parameters{{Vector: ones(f.Width), Left: [][]float32{ones(f.Width)}}}},
	} {
		inputError(t, d.Steer(Active{Steering: s, Strength: 1}), what)
		require.Equal(t, unsteered, textLogits(t, d, []Token{1, 2, 3}, 1), "a steering that was refused changes nothing")
	}
	// two vectors of wrong widths whose sum is right
	inputError(t, d.Steer(Active{Steering: added(map[int][]float32{1: ones(f.Width - 1)}), Strength: 1}, Active{Steering: added(map[int][]float32{1: ones(f.Width + 1)}), Strength: 1}), "width")

	for what, tokens := range map[string][]Token{"token -1": {1, -1}, "token 260": {260}, "no tokens": {}, "longer than the context of 8": make([]Token, 9)} {
		_, err := d.Logits(ctx, tokens, 1)
		inputError(t, err, what)
		_, err = d.Generate(ctx, [][]Token{tokens}, GenerateOptions{Tokens: 1}, nil)
		inputError(t, err, what)
	}
	_, err := d.Generate(ctx, [][]Token{{1}, {2}}, GenerateOptions{Tokens: 1}, nil)
	require.ErrorContains(t, err, "2 prompts")
	d.Clear()
	nextLogits(t, d, make([]Token, 8))
	inputError(t, d.Slot(0).Append(1), "longer than the context of 8")
	inputError(t, d.Slot(0).Append(-1), "longer than the context of 8")
	require.Equal(t, unsteered, textLogits(t, d, []Token{1, 2, 3}, 1))
	// a generation ends where the context does
	c, err := d.Generate(ctx, [][]Token{{1, 2, 3}}, GenerateOptions{Tokens: 100}, nil)
	require.NoError(t, err)
	require.Len(t, c[0].Tokens, 5)
	require.Equal(t, StopLength, c[0].Stop)

	for _, prompt := range []int{-1, 0, 2, 3} {
		_, err = m.Logprobs(ctx, []Token{1, 2}, prompt, 1, F32)
		inputError(t, err, "both prompt and completion need at least one")
	}
	_, err = m.Logprobs(ctx, []Token{1, 260, 2}, 1, 1, F32)
	inputError(t, err, "token 260")
}

func TestHostileActivations(t *testing.T) {
	m, _ := openFixture(t, "gemma2")
	ctx := context.Background()
	for what, test := range map[string]struct {
		tokens []Token
		layers []int
	}{
		"layer 4": {[]Token{1}, []int{4}}, "layer -1": {[]Token{1}, []int{-1}}, "ascend": {[]Token{1}, []int{1, 1}}, "is 260": {[]Token{1, 260}, []int{0}},
		"without tokens": {nil, []int{0}}, "longer than the 256": {make([]Token, 257), []int{0}},
	} {
		_, err := m.Activations(ctx, test.tokens, test.layers)
		inputError(t, err, what)
	}
	for what, active := range map[string]Active{
		"has layers 0 to 3":   {Steering: added(map[int][]float32{5: make([]float32, m.Info().Embd)}), Strength: 1},
		"model's width is":    {Steering: added(map[int][]float32{1: {1}}), Strength: 1},
		"finite number":       {Steering: added(map[int][]float32{1: make([]float32, m.Info().Embd)}), Strength: math.NaN()},
		"steering is missing": {},
	} {
		_, err := m.Activations(ctx, []Token{1}, []int{0}, active)
		inputError(t, err, what)
	}
	x, err := m.Activations(ctx, []Token{1, 2}, nil)
	require.NoError(t, err)
	require.Empty(t, x)
	for _, layers := range [][]int{{4}, {-1}, {2, 1}, {1, 1}} {
		inputError(t, m.Differentiable(layers), "layer")
	}
	inputError(t, m.Differentiable(nil), "without a steered layer")
	_, err = m.Tokenize("a text", false)
	inputError(t, err, "no tokenizer")
	require.Empty(t, m.Text([]Token{-1, 260, 5}, true))
	_, err = m.Chat("", "a")
	inputError(t, err, "no chat template")
}

func TestModelsThatDoNotOpen(t *testing.T) {
	_, err := Open("no such model.gguf", Options{})
	inputError(t, err, "no such model.gguf")
	_, err = Open(referenceFolder+"make.py", Options{})
	inputError(t, err, "make.py")
	_, err = Open(referenceFolder+"llama.gguf", Options{})
	inputError(t, err, "no tokenizer")
	// and without the check before it
	_, err = open(referenceFolder+"make.py", Options{})
	inputError(t, err, "llama.cpp cannot load this model")
}
