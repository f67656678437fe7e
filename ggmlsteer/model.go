package ggmlsteer

/*
#cgo CFLAGS: -I${SRCDIR}/../csrc
#cgo LDFLAGS: -L${SRCDIR}/../bin -lllsteer -Wl,-rpath,$ORIGIN -Wl,-rpath,$ORIGIN/../lib/llsteer -Wl,-rpath,${SRCDIR}/../bin
#include <stdlib.h>
#include "steer.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/llsteer/llsteer/loader"
)

// A Model is an open GGUF model. It may be used by several goroutines.
type Model struct {
	info    Info
	threads int

	mu     sync.Mutex
	c      *C.steer_model
	users  int // sessions, decoders and calls under way
	closed bool
}

// Open loads a GGUF model; of a split one, path is the first part. The file is
// checked first (see loader.CheckModel), since llama.cpp aborts on some damage.
func Open(path string, o Options) (*Model, error) {
	if _, err := loader.CheckModel(path); err != nil {
		return nil, err
	}
	return open(path, o)
}

func open(path string, o Options) (*Model, error) {
	threads := o.Threads
	if threads <= 0 {
		threads = physicalCores()
	}
	options := C.steer_model_options{threads: C.int32_t(threads), gpu_layers: C.int32_t(o.GPULayers)}
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	m := &Model{threads: threads}
	if err := call(nil, func(_ *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_model_open(cpath, &options, &m.c, text, size)
	}); err != nil {
		return nil, err
	}
	var info C.steer_info
	C.steer_model_info(m.c, &info)
	m.info = Info{
		Path:         path,
		Name:         C.GoString(&info.name[0]),
		Arch:         C.GoString(&info.arch[0]),
		Quantization: C.GoString(&info.quantization[0]),
		Embd:         int(info.n_embd),
		Layers:       int(info.n_layer),
		Vocab:        int(info.n_vocab),
		TrainContext: int(info.n_ctx_train),
		Chat:         info.has_chat_template != 0,
		GPULayers:    int(info.gpu_layers),
		NoGPU:        C.GoString(&info.no_gpu[0]),
	}
	if m.info.Name == "" {
		m.info.Name = strings.TrimSuffix(filepath.Base(path), ".gguf")
	}
	return m, nil
}

// Close frees the model once its sessions and decoders are closed, too.
func (m *Model) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.freeLocked()
	return nil
}

func (m *Model) freeLocked() {
	if m.closed && m.users == 0 && m.c != nil {
		C.steer_model_free(m.c)
		m.c = nil
	}
}

var errClosed = errors.New("the model is closed")

// acquire keeps the model alive until release.
func (m *Model) acquire() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	m.users++
	return nil
}

func (m *Model) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.users--
	m.freeLocked()
}

// checkLength refuses more tokens than the model was trained on: some
// architectures have no positions for them, and ggml aborts there.
func (m *Model) checkLength(n int) error {
	if n > m.info.TrainContext {
		return &loader.InputError{Message: fmt.Sprintf("a context of %d tokens is longer than the %d that the model was trained on", n, m.info.TrainContext)}
	}
	return nil
}

// Info describes the model.
func (m *Model) Info() Info { return m.info }

// Threads is how many threads its computations use.
func (m *Model) Threads() int { return m.threads }

// call runs f, one call into the engine, with a flag that the end of ctx sets
// (nil: none) and a buffer for its error text.
func call(ctx context.Context, f func(cancel *C.int32_t, text *C.char, size C.size_t) C.steer_status) error {
	cancel := new(int32)
	if ctx != nil {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		defer context.AfterFunc(ctx, func() { atomic.StoreInt32(cancel, 1) })()
	}
	text := make([]byte, 4096)
	switch f((*C.int32_t)(unsafe.Pointer(cancel)), (*C.char)(unsafe.Pointer(&text[0])), C.size_t(len(text))) {
	case C.STEER_OK:
		return nil
	case C.STEER_CANCELLED:
		return context.Cause(ctx)
	case C.STEER_BAD_INPUT:
		return &loader.InputError{Message: message(text)}
	default:
		return errors.New(message(text))
	}
}

func message(text []byte) string {
	s, _, _ := strings.Cut(string(text), "\x00")
	return s
}

// Tokenize adds BOS and the like as the model asks. Control tokens written in
// the text are plain text unless parseSpecial.
func (m *Model) Tokenize(text string, parseSpecial bool) ([]Token, error) {
	return m.tokenize(text, true, parseSpecial)
}

func (m *Model) tokenize(text string, addSpecial, parseSpecial bool) ([]Token, error) {
	if err := m.acquire(); err != nil {
		return nil, err
	}
	defer m.release()
	if len(text) > math.MaxInt32/4 {
		return nil, &loader.InputError{Message: fmt.Sprintf("a text of %d bytes is too long", len(text))}
	}
	flag := func(b bool) C.int {
		if b {
			return 1
		}
		return 0
	}
	data := append([]byte(text), 0) // never empty, so that it has an address
	tokens := make([]Token, len(text)+8)
	for {
		n := C.steer_tokenize(m.c, (*C.char)(unsafe.Pointer(&data[0])), C.int32_t(len(text)), flag(addSpecial), flag(parseSpecial),
			(*C.steer_token)(&tokens[0]), C.int32_t(len(tokens)))
		switch {
		case n < 0:
			return nil, &loader.InputError{Message: "the model has no tokenizer that can read this text"}
		case int(n) <= len(tokens):
			return tokens[:n], nil
		}
		tokens = make([]Token, n)
	}
}

// Text is the text of tokens; control tokens have none unless special. The
// bytes of an incomplete character are kept as they are.
func (m *Model) Text(tokens []Token, special bool) string {
	if m.acquire() != nil {
		return ""
	}
	defer m.release()
	return m.text(tokens, special)
}

// text is Text for what holds the model: a decoder goes on after the model's Close.
func (m *Model) text(tokens []Token, special bool) string {
	flag := C.int(0)
	if special {
		flag = 1
	}
	var text []byte
	piece := make([]byte, 64)
	for _, t := range tokens {
		n := int(C.steer_token_text(m.c, C.steer_token(t), flag, (*C.char)(unsafe.Pointer(&piece[0])), C.int32_t(len(piece))))
		if n > len(piece) {
			piece = make([]byte, n)
			n = int(C.steer_token_text(m.c, C.steer_token(t), flag, (*C.char)(unsafe.Pointer(&piece[0])), C.int32_t(n)))
		}
		text = append(text, piece[:n]...)
	}
	return string(text)
}

// Ends says whether a token ends a generation. Nothing goes on with a closed model.
func (m *Model) Ends(t Token) bool {
	if m.acquire() != nil {
		return true
	}
	defer m.release()
	return m.ends(t)
}

func (m *Model) ends(t Token) bool { return C.steer_token_ends(m.c, C.steer_token(t)) != 0 }

// A Message is one of a chat. Roles are RoleSystem, RoleUser and RoleAssistant.
type Message struct {
	Role, Text string
}

const (
	RoleSystem    = "system"
	RoleUser      = "user"
	RoleAssistant = "assistant"
)

// Chat puts the model's chat template around a user's turn, up to and with the
// assistant's header, with the template's control tokens parsed and BOS once.
// Control tokens written by the user stay plain text. system may be "".
func (m *Model) Chat(system, user string) ([]Token, error) {
	return m.chat(turn(system, user), "")
}

// ChatCompletion is Chat with a completion after it: the completion's tokens
// are those from len(Chat(system, user)) on.
func (m *Model) ChatCompletion(system, user, completion string) ([]Token, error) {
	return m.chat(turn(system, user), completion)
}

// ChatMessages is Chat with a history: the messages end with a user's, and the
// assistant's header follows.
func (m *Model) ChatMessages(messages []Message) ([]Token, error) {
	if n := len(messages); n == 0 || messages[n-1].Role != RoleUser {
		return nil, errors.New("the last message of a chat must be a user's")
	}
	return m.chat(messages, "")
}

func turn(system, user string) []Message {
	if system == "" {
		return []Message{{RoleUser, user}}
	}
	return []Message{{RoleSystem, system}, {RoleUser, user}}
}

func (m *Model) chat(messages []Message, completion string) ([]Token, error) {
	text, err := m.renderChat(messages)
	if err != nil {
		return nil, err
	}
	// BOS is the template's or the tokenizer's, not both
	addSpecial := true
	if bos, err := m.tokenize("", true, false); err != nil {
		return nil, err
	} else if first := m.Text(bos, true); first != "" && strings.HasPrefix(text, first) {
		addSpecial = false
	}
	plain := true
	for _, message := range append(slices.Clone(messages), Message{"", completion}) {
		as, err := m.tokenize(message.Text, false, true)
		if err != nil {
			return nil, err
		}
		if is, _ := m.tokenize(message.Text, false, false); len(as) != len(is) {
			plain = false
		}
	}
	if plain {
		return m.tokenize(text+completion, addSpecial, true)
	}
	// Somebody wrote a control token: tokenize the template around marks, and
	// what stands at the marks by itself.
	mark := func(i int) string { return fmt.Sprintf("\x01message %d\x01", i) }
	marked := slices.Clone(messages)
	for i := range marked {
		marked[i].Text = mark(i)
	}
	if text, err = m.renderChat(marked); err != nil {
		return nil, err
	}
	var tokens []Token
	add := func(text string, special bool) error {
		if text == "" {
			return nil
		}
		more, err := m.tokenize(text, addSpecial, special)
		tokens, addSpecial = append(tokens, more...), false
		return err
	}
	for text != "" {
		at, found, value := len(text), "", ""
		for i, message := range messages {
			if j := strings.Index(text, mark(i)); j >= 0 && j < at {
				at, found, value = j, mark(i), message.Text
			}
		}
		if err := add(text[:at], true); err != nil {
			return nil, err
		}
		if err := add(value, false); err != nil {
			return nil, err
		}
		text = text[at+len(found):]
	}
	return tokens, add(completion, false)
}

func (m *Model) renderChat(messages []Message) (string, error) {
	if err := m.acquire(); err != nil {
		return "", err
	}
	defer m.release()
	var roles, texts []*C.char
	size := 1024
	for _, message := range messages {
		if strings.Contains(message.Text, "\x00") {
			return "", &loader.InputError{Message: "a text of a chat holds a zero byte, which no template can take"}
		}
		role, text := C.CString(message.Role), C.CString(message.Text)
		defer C.free(unsafe.Pointer(role))
		defer C.free(unsafe.Pointer(text))
		roles, texts = append(roles, role), append(texts, text)
		size += 64 + 2*len(message.Text)
	}
	text := make([]byte, size)
	for {
		n := C.steer_chat(m.c, unsafe.SliceData(roles), unsafe.SliceData(texts), C.int32_t(len(messages)), (*C.char)(unsafe.Pointer(&text[0])), C.int32_t(len(text)))
		switch {
		case n < 0 && !m.info.Chat:
			return "", &loader.InputError{Message: m.info.Path + ": the model has no chat template", Hint: "leave out --chat, or use an instruction-tuned model"}
		case n < 0:
			return "", &loader.InputError{Message: m.info.Path + ": llama.cpp does not know the model's chat template", Hint: "leave out --chat and write the template's text into the prompt"}
		case int(n) <= len(text):
			return string(text[:n]), nil
		}
		text = make([]byte, n)
	}
}

// layersOf converts and keeps at least one element, for an address.
func layersOf(layers []int) []C.int32_t {
	c := make([]C.int32_t, len(layers), len(layers)+1)
	for i, l := range layers {
		c[i] = C.int32_t(l)
	}
	return c[:len(layers):cap(c)]
}

// Differentiable returns nil if losses on this model have a gradient with
// respect to a steering at these layers, or an error that names the
// architecture and the missing operation.
func (m *Model) Differentiable(layers []int) error {
	if len(layers) == 0 {
		return &loader.InputError{Message: "without a steered layer there is no gradient"}
	}
	if err := m.acquire(); err != nil {
		return err
	}
	defer m.release()
	c := layersOf(layers)
	return call(nil, func(_ *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_differentiable(m.c, unsafe.SliceData(c), C.int32_t(len(layers)), text, size)
	})
}

// Activations returns the residual stream at layers as their blocks read it:
// x[l][i] for layer l and token i, of the model's width. Steerings change it at
// their own layers and at those above. The text counts as a prompt.
func (m *Model) Activations(ctx context.Context, tokens []Token, layers []int, active ...Active) ([][][]float32, error) {
	if err := m.acquire(); err != nil {
		return nil, err
	}
	defer m.release()
	if len(tokens) == 0 {
		return nil, &loader.InputError{Message: "a text without tokens has no activations"}
	}
	if err := m.checkLength(len(tokens)); err != nil {
		return nil, err
	}
	uses, err := m.uses(active)
	if err != nil {
		return nil, err
	}
	var all []*lowered
	for i, u := range uses {
		if i == 0 || u.id != uses[i-1].id {
			all = append(all, u.lowered)
		}
	}
	factors := make([][]factor, len(tokens))
	for at := range factors {
		factors[at] = factorsOf(uses, at, len(tokens))
	}
	var pinner runtime.Pinner
	defer pinner.Unpin()
	ops, strengths := m.operations(all, &pinner), strengthsOf(all, factors)
	embd := m.info.Embd
	flat := make([]float32, len(layers)*len(tokens)*embd)
	c := layersOf(layers)
	if err := call(ctx, func(cancel *C.int32_t, text *C.char, size C.size_t) C.steer_status {
		return C.steer_activations(m.c, (*C.steer_token)(&tokens[0]), C.int32_t(len(tokens)), unsafe.SliceData(ops), C.int32_t(len(ops)),
			&strengths[0], C.int32_t(len(all)), unsafe.SliceData(c), C.int32_t(len(layers)), (*C.float)(unsafe.SliceData(flat)), cancel, text, size)
	}); err != nil {
		return nil, err
	}
	x := make([][][]float32, len(layers))
	for l := range x {
		x[l] = make([][]float32, len(tokens))
		for i := range x[l] {
			x[l][i], flat = flat[:embd:embd], flat[embd:]
		}
	}
	return x, nil
}

// StreamNorms returns the Euclidean norms of the unsteered residual stream at
// the input of layers: norms[l][k][i] for layer l and token i of texts[k].
func (m *Model) StreamNorms(ctx context.Context, texts [][]Token, layers []int) ([][][]float64, error) {
	norms := make([][][]float64, len(layers))
	for _, tokens := range texts {
		x, err := m.Activations(ctx, tokens, layers)
		if err != nil {
			return nil, err
		}
		for l := range x {
			row := make([]float64, len(tokens))
			for i, v := range x[l] {
				sum := 0.0
				for _, f := range v {
					sum += float64(f) * float64(f)
				}
				row[i] = math.Sqrt(sum)
			}
			norms[l] = append(norms[l], row)
		}
	}
	return norms, nil
}
