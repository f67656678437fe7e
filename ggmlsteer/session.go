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
	"strings"
	"unsafe"

	"github.com/llsteer/llsteer/loader"
)

// A Session evaluates the probabilities of its sequences' completions, and
// their gradient, as a function of a steering.
type Session struct {
	model   *Model
	options SessionOptions
	targets []int // number of targets of each sequence
	c       *C.steer_session
	net     runtime.Cleanup
}

// NewSession prepares losses and gradients over sequences. What does not depend
// on the steering is computed once for the session, prefixes that agree in
// tokens and factors once for all sequences.
func (m *Model) NewSession(o SessionOptions, seqs []Sequence) (*Session, error) {
	rows := 0                                               // of factors, for each sequence
	if len(o.Layers) > 0 && o.Vectors >= 0 && o.Rank >= 0 { // or else the engine refuses them
		rows = o.Vectors + o.Rank
	}
	s := &Session{model: m, options: o}
	var lengths, prompts []C.int32_t
	var tokens []Token
	var strengths []float32
	for i, seq := range seqs {
		n := len(seq.Tokens)
		if err := m.checkLength(n); err != nil {
			return nil, err
		}
		lengths, prompts = append(lengths, C.int32_t(n)), append(prompts, C.int32_t(seq.Prompt))
		tokens = append(tokens, seq.Tokens...)
		s.targets = append(s.targets, n-seq.Prompt)
		if rows == 0 {
			continue
		}
		if len(seq.Vector) != o.Vectors || len(seq.Matrix) != o.Rank {
			return nil, fmt.Errorf("sequence %d has factors for %d vectors and %d rows, not %d and %d", i, len(seq.Vector), len(seq.Matrix), o.Vectors, o.Rank)
		}
		factors := slices.Concat(seq.Vector, seq.Matrix)
		for _, f := range factors {
			if len(f) != n {
				return nil, fmt.Errorf("sequence %d has %d tokens and %d factors", i, n, len(f))
			}
			strengths = append(strengths, f...)
		}
	}
	if len(seqs) == 0 {
		return nil, errors.New("a session needs at least one sequence")
	}
	if err := m.acquire(); err != nil {
		return nil, err
	}
	layers := layersOf(o.Layers)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pin(&pinner, layers)
	pin(&pinner, lengths)
	pin(&pinner, prompts)
	pin(&pinner, tokens)
	pin(&pinner, strengths)
	options := C.steer_session_options{
		layers: unsafe.SliceData(layers), n_layers: C.int32_t(len(o.Layers)),
		n_vectors: C.int32_t(o.Vectors), rank: C.int32_t(o.Rank), coldness: C.double(o.Coldness), observed_layer: -1,
		precision: C.steer_precision(max(F32, o.Precision)), memory: C.double(o.Memory),
	}
	if o.Observed != nil {
		if *o.Observed < 0 {
			m.release()
			return nil, &loader.InputError{Message: fmt.Sprintf("layer %d does not exist: they are counted from 0", *o.Observed)}
		}
		options.observed_layer = C.int32_t(*o.Observed)
	}
	sequences := C.steer_sequences{
		n_sequences: C.int32_t(len(seqs)), n_tokens: unsafe.SliceData(lengths), n_prompt: unsafe.SliceData(prompts),
		tokens: (*C.steer_token)(unsafe.SliceData(tokens)), strengths: (*C.float)(unsafe.SliceData(strengths)),
	}
	if err := call(nil, func(_ *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_session_new(m.c, &options, &sequences, &s.c, text, size)
	}); err != nil {
		m.release()
		return nil, err
	}
	s.net = runtime.AddCleanup(s, freeSession, sessionHandle{m, s.c})
	return s, nil
}

type sessionHandle struct {
	model *Model
	c     *C.steer_session
}

func freeSession(h sessionHandle) {
	C.steer_session_free(h.c)
	h.model.release()
}

// Close frees the session.
func (s *Session) Close() error {
	if s.c != nil {
		s.net.Stop()
		freeSession(sessionHandle{s.model, s.c})
		s.c = nil
	}
	return nil
}

// pin keeps a slice in place, an empty one with an address too.
func pin[T any](pinner *runtime.Pinner, slice []T) {
	if cap(slice) > 0 {
		pinner.Pin(unsafe.SliceData(slice))
	}
}

// BatchTokens is how many tokens one evaluation computes, shared prefixes
// counted once; 0 once the session is closed.
func (s *Session) BatchTokens() int {
	if s.c == nil {
		return 0
	}
	return int(C.steer_session_n_tokens(s.c))
}

// Nodes describes what the session computes where: for each node of its graphs the
// device, the operation, and types and shapes, as in
//
//	CPU OUT_PROD f32[2304,90,1,1] <- q8_0[2304,9216,1,1] f32[90,9216,1,1]' node_812
//
// and last the device of the vocabulary's softmax, which is no node.
func (s *Session) Nodes() []string {
	if s.c == nil {
		return nil
	}
	text := make([]byte, C.steer_session_nodes(s.c, nil, 0))
	C.steer_session_nodes(s.c, (*C.char)(unsafe.Pointer(unsafe.SliceData(text))), C.int64_t(len(text)))
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

var errSessionClosed = errors.New("the session is closed")

// Forward evaluates at ops, parallel to the session's layers, and returns
// probs[i][j] of the j-th target of sequence i.
func (s *Session) Forward(ctx context.Context, ops []Operation) ([][]Prob, error) {
	probs, _, err := s.forward(ctx, ops, false)
	return probs, err
}

// ForwardObserved is Forward and returns, too, streams[i][j] of the model's width: the
// stream at the observed layer's input of the j-th target token of sequence i.
func (s *Session) ForwardObserved(ctx context.Context, ops []Operation) (probs [][]Prob, streams [][][]float32, err error) {
	if s.options.Observed == nil {
		return nil, nil, errNotObserved
	}
	return s.forward(ctx, ops, true)
}

var errNotObserved = errors.New("the session observes no layer")

func (s *Session) forward(ctx context.Context, ops []Operation, observe bool) (probs [][]Prob, streams [][][]float32, err error) {
	if s.c == nil {
		return nil, nil, errSessionClosed
	}
	params, err := s.flatten(ops)
	if err != nil {
		return nil, nil, err
	}
	total := 0
	for _, n := range s.targets {
		total += n
	}
	flat := make([]C.steer_prob, total)
	var observed []float32
	if observe {
		observed = make([]float32, total*s.model.info.Embd)
	}
	if err := call(ctx, func(cancel *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_session_forward(s.c, (*C.float)(unsafe.SliceData(params)), unsafe.SliceData(flat), (*C.float)(unsafe.SliceData(observed)), cancel, text, size)
	}); err != nil {
		return nil, nil, err
	}
	probs = make([][]Prob, len(s.targets))
	for i, n := range s.targets {
		probs[i] = make([]Prob, n)
		for j := range probs[i] {
			probs[i][j] = Prob{Log: float64(flat[j].log_p), LogComplement: float64(flat[j].log_1mp)}
		}
		flat = flat[n:]
	}
	if observe {
		streams = make([][][]float32, len(s.targets))
		for i, n := range s.targets {
			streams[i] = takeRows(&observed, n, s.model.info.Embd)
		}
	}
	return probs, streams, nil
}

// takeRows takes n rows of a width off the front of flat.
func takeRows(flat *[]float32, n, width int) [][]float32 {
	rows := make([][]float32, n)
	for i := range rows {
		rows[i], *flat = (*flat)[:width:width], (*flat)[width:]
	}
	return rows
}

// Backward returns the gradient of Σ weights[i][j]·probs[i][j].Log with respect
// to ops, at the point of the last Forward.
func (s *Session) Backward(ctx context.Context, weights [][]float64) ([]Operation, error) {
	return s.backward(ctx, weights, nil)
}

// BackwardObserved is Backward for Σ weights[i][j]·probs[i][j].Log +
// Σ dStreams[i][j]·streams[i][j], the latter a product of two vectors.
func (s *Session) BackwardObserved(ctx context.Context, weights [][]float64, dStreams [][][]float32) ([]Operation, error) {
	if s.options.Observed == nil {
		return nil, errNotObserved
	}
	var flat []float32
	for i, rows := range dStreams {
		for _, row := range rows {
			if len(row) != s.model.info.Embd {
				return nil, fmt.Errorf("the gradient of a stream has %d numbers, not %d", len(row), s.model.info.Embd)
			}
			flat = append(flat, row...)
		}
		if i >= len(s.targets) || len(rows) != s.targets[i] {
			return nil, fmt.Errorf("gradients of the streams are not parallel to the targets")
		}
	}
	if len(dStreams) != len(s.targets) {
		return nil, fmt.Errorf("gradients of the streams for %d sequences, not %d", len(dStreams), len(s.targets))
	}
	return s.backward(ctx, weights, flat)
}

func (s *Session) backward(ctx context.Context, weights [][]float64, dStreams []float32) ([]Operation, error) {
	if s.c == nil {
		return nil, errSessionClosed
	}
	if len(weights) != len(s.targets) {
		return nil, fmt.Errorf("weights for %d sequences, not %d", len(weights), len(s.targets))
	}
	var flat []float64
	for i, w := range weights {
		if len(w) != s.targets[i] {
			return nil, fmt.Errorf("sequence %d has %d targets and %d weights", i, s.targets[i], len(w))
		}
		flat = append(flat, w...)
	}
	gradient := make([]float32, s.params())
	if err := call(ctx, func(cancel *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_session_backward(s.c, (*C.double)(unsafe.SliceData(flat)), (*C.float)(unsafe.SliceData(dStreams)), (*C.float)(unsafe.SliceData(gradient)), cancel, text, size)
	}); err != nil {
		return nil, err
	}
	return s.unflatten(gradient), nil
}

func (s *Session) params() int {
	return len(s.options.Layers) * (s.options.Vectors + 2*s.options.Rank) * s.model.info.Embd
}

// flatten orders ops as the engine does: at each layer vectors, left, right.
func (s *Session) flatten(ops []Operation) ([]float32, error) {
	o := s.options
	if len(ops) != len(o.Layers) {
		return nil, fmt.Errorf("operations for %d layers, not %d", len(ops), len(o.Layers))
	}
	params := make([]float32, 0, s.params()+1)
	for i, op := range ops {
		if len(op.Vectors) != o.Vectors || len(op.Left) != o.Rank || len(op.Right) != o.Rank {
			return nil, fmt.Errorf("the operation at layer %d has %d vectors, %d left and %d right rows, not %d, %d and %d",
				o.Layers[i], len(op.Vectors), len(op.Left), len(op.Right), o.Vectors, o.Rank, o.Rank)
		}
		for _, rows := range [][][]float32{op.Vectors, op.Left, op.Right} {
			for _, row := range rows {
				if len(row) != s.model.info.Embd {
					return nil, &loader.InputError{Message: fmt.Sprintf("layer %d is steered with %d numbers, and the model's width is %d", o.Layers[i], len(row), s.model.info.Embd)}
				}
				params = append(params, row...)
			}
		}
	}
	return params, nil
}

func (s *Session) unflatten(flat []float32) []Operation {
	o, embd := s.options, s.model.info.Embd
	ops := make([]Operation, len(o.Layers))
	for i := range ops {
		ops[i] = Operation{Vectors: takeRows(&flat, o.Vectors, embd), Left: takeRows(&flat, o.Rank, embd), Right: takeRows(&flat, o.Rank, embd)}
	}
	return ops
}
