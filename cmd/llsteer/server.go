package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
)

// maxAnswer bounds what is read of a server's answer: a hundred times what a right one takes.
const maxAnswer = 4 << 20

// A server is a running chat server that is asked for probabilities, over
// llama-server's own /completion or OpenAI's /v1/completions.
type server struct {
	base    string // without a slash at the end
	key     string // "": none
	model   string // as the server names it; "": whichever it has
	timeout time.Duration
	client  http.Client
	openAI  bool // it has no /completion
	top     int  // probabilities asked for
}

// newServer reads a server's address.
func newServer(address string) (*server, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, badInput("such as http://127.0.0.1:8080", "--server %q is no address of a server", address)
	}
	base := strings.TrimSuffix(strings.TrimRight(u.String(), "/"), "/v1")
	s := &server{base: base, top: 50}
	// a server that answers elsewhere gets no key
	s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return s, nil
}

// A likely token is one that a server gives a probability for. ID is -1 where it
// only gives the token's text.
type likely struct {
	ID      ggmlsteer.Token
	Text    string
	Logprob float64
}

// A refusal is an answer with another status than 200.
type refusal struct {
	status  int
	message string
}

func (r *refusal) Error() string {
	text := fmt.Sprintf("status %d %s", r.status, http.StatusText(r.status))
	if r.message != "" {
		text += ": " + r.message
	}
	return text
}

// post sends JSON and reads JSON.
func (s *server) post(ctx context.Context, path string, request, answer any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("no answer within %v", s.timeout))
	defer cancel()
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	if s.key != "" {
		r.Header.Set("Authorization", "Bearer "+s.key)
	}
	data, status, err := s.do(r)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case status != http.StatusOK:
		return &refusal{status, complaint(data)}
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("the answer to %s is not the JSON that was expected: %w", path, err)
	}
	return nil
}

func (s *server) do(r *http.Request) (data []byte, status int, err error) {
	response, err := s.client.Do(r)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) { // its text repeats the address
			err = wrapped.Err
		}
		return nil, 0, err
	}
	defer response.Body.Close()
	data, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err == nil && len(data) > maxAnswer {
		err = fmt.Errorf("the answer is longer than %d MiB", maxAnswer>>20)
	}
	return data, response.StatusCode, err
}

// complaint is a refusal's message, where it is OpenAI's error object.
func complaint(data []byte) string {
	var failure struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(data, &failure) != nil {
		return ""
	}
	var object struct {
		Message string `json:"message"`
	}
	var text string
	if json.Unmarshal(failure.Error, &object) == nil {
		text = object.Message
	} else if json.Unmarshal(failure.Error, &text) != nil {
		return ""
	}
	const most = 300
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// unreachable is the error of a server that does not do what it is asked.
func (s *server) unreachable(err error) error {
	hint := "is it running, and is that its address?"
	var refused *refusal
	if errors.As(err, &refused) {
		hint = ""
		switch refused.status {
		case http.StatusUnauthorized, http.StatusForbidden:
			hint = "give its key with --api-key"
		case http.StatusServiceUnavailable:
			hint = "it may still load its model"
		case http.StatusNotFound, http.StatusMethodNotAllowed:
			hint = "a server with /completion or /v1/completions is needed"
		}
	}
	return badInput(hint, "the server %s: %v", s.base, err)
}

// next asks for the likeliest next tokens after a prompt.
func (s *server) next(ctx context.Context, prompt []ggmlsteer.Token, text string) ([]likely, error) {
	if !s.openAI {
		all, err := s.completion(ctx, prompt)
		var refused *refusal
		if !errors.As(err, &refused) || refused.status != http.StatusNotFound && refused.status != http.StatusMethodNotAllowed {
			return all, s.explained(ctx, err)
		}
		s.openAI, s.top = true, 20
	}
	// tokens first: a text is tokenized by the server, perhaps in another way
	all, err := s.completions(ctx, prompt)
	var refused *refusal
	if errors.As(err, &refused) && (refused.status == http.StatusBadRequest || refused.status == http.StatusUnprocessableEntity) && s.top > 5 {
		s.top = 5 // OpenAI's own limit
		all, err = s.completions(ctx, prompt)
	}
	if errors.As(err, &refused) && (refused.status == http.StatusBadRequest || refused.status == http.StatusUnprocessableEntity) {
		all, err = s.completions(ctx, text)
	}
	return all, s.explained(ctx, err)
}

// explained makes an input error of whatever went wrong, but for an interrupt.
func (s *server) explained(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return s.unreachable(err)
}

// A tokenView is one token as servers write it; older llama-servers have tok_str and prob.
type tokenView struct {
	ID      *ggmlsteer.Token `json:"id"`
	Token   string           `json:"token"`
	Bytes   []int            `json:"bytes"`
	Logprob *float64         `json:"logprob"`
	Top     []tokenView      `json:"top_logprobs"`

	OldText string   `json:"tok_str"`
	OldProb *float64 `json:"prob"`
}

func (v tokenView) likely() (likely, error) {
	l := likely{ID: -1, Text: v.Token}
	if v.ID != nil {
		l.ID = *v.ID
	}
	if len(v.Bytes) > 0 {
		text := make([]byte, len(v.Bytes))
		for i, b := range v.Bytes {
			if b < 0 || b > 255 {
				return l, fmt.Errorf("a token has the byte %d", b)
			}
			text[i] = byte(b)
		}
		l.Text = string(text)
	}
	switch {
	case v.Logprob != nil:
		l.Logprob = *v.Logprob
	case v.OldProb != nil:
		l.Text, l.Logprob = v.OldText, math.Log(max(*v.OldProb, math.SmallestNonzeroFloat64))
	default:
		return l, errNoProbabilities
	}
	return l, nil
}

var errNoProbabilities = errors.New("it gives no probabilities of tokens")

// completion asks llama-server.
func (s *server) completion(ctx context.Context, prompt []ggmlsteer.Token) ([]likely, error) {
	var answer struct {
		Probabilities []struct {
			Top []tokenView `json:"top_logprobs"`
			Old []tokenView `json:"probs"`
		} `json:"completion_probabilities"`
	}
	err := s.post(ctx, "/completion", map[string]any{
		"prompt": prompt, "n_predict": 1, "n_probs": s.top, "temperature": 0, "cache_prompt": false, "stream": false, "model": s.model,
	}, &answer)
	if err != nil {
		return nil, err
	}
	if len(answer.Probabilities) == 0 {
		return nil, errNoProbabilities
	}
	views := answer.Probabilities[0].Top
	if len(views) == 0 {
		views = answer.Probabilities[0].Old
	}
	return likelyOf(views)
}

// completions asks an OpenAI-compatible server; prompt is tokens or a text.
func (s *server) completions(ctx context.Context, prompt any) ([]likely, error) {
	var answer struct {
		Choices []struct {
			Logprobs *struct {
				Content []tokenView       `json:"content"`      // as in chat completions, and llama-server here too
				Top     []json.RawMessage `json:"top_logprobs"` // OpenAI's own: logarithms by text
			} `json:"logprobs"`
		} `json:"choices"`
	}
	request := map[string]any{"prompt": prompt, "max_tokens": 1, "logprobs": s.top, "temperature": 1, "stream": false}
	if s.model != "" {
		request["model"] = s.model
	}
	if err := s.post(ctx, "/v1/completions", request, &answer); err != nil {
		return nil, err
	}
	if len(answer.Choices) == 0 || answer.Choices[0].Logprobs == nil {
		return nil, errNoProbabilities
	}
	logprobs := answer.Choices[0].Logprobs
	if len(logprobs.Content) > 0 {
		return likelyOf(logprobs.Content[0].Top)
	}
	if len(logprobs.Top) == 0 {
		return nil, errNoProbabilities
	}
	var byText map[string]*float64
	if err := json.Unmarshal(logprobs.Top[0], &byText); err != nil {
		return nil, fmt.Errorf("its probabilities are not what was expected: %w", err)
	}
	var views []tokenView
	for text, logprob := range byText {
		views = append(views, tokenView{Token: text, Logprob: logprob})
	}
	return likelyOf(views)
}

// likelyOf checks probabilities: each a logarithm, in all at most 1.
func likelyOf(views []tokenView) ([]likely, error) {
	if len(views) == 0 {
		return nil, errNoProbabilities
	}
	// float32 rounding of a thousand numbers stays far below
	const slack = 1e-3
	var all []likely
	sum := 0.0
	for _, v := range views {
		l, err := v.likely()
		if err != nil {
			return nil, err
		}
		if !(l.Logprob <= slack) {
			return nil, fmt.Errorf("it says that the logarithm of a probability is %v", l.Logprob)
		}
		sum += math.Exp(l.Logprob)
		all = append(all, l)
	}
	if sum > 1+slack {
		return nil, fmt.Errorf("its probabilities add up to %v", sum)
	}
	return all, nil
}
