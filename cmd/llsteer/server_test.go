package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/rogpeppe/go-internal/testscript"
)

// serve KIND [FILE:STRENGTH]: a server on the demo model, steered, or one that
// misbehaves. Its address is $SERVER.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	f := &fakeServer{kind: args[0]}
	if len(args) > 1 {
		path, strength := loader.ParseActive(args[1])
		s, err := loader.Read(ts.MkAbs(path))
		ts.Check(err)
		f.active = []ggmlsteer.Active{{Steering: s, Strength: strength}}
	}
	path := ts.MkAbs("served.gguf")
	ts.Check(writeFile(path, demo.Model))
	m, err := ggmlsteer.Open(path, ggmlsteer.Options{Threads: 1})
	ts.Check(err)
	f.model = m
	server := httptest.NewServer(f)
	ts.Defer(func() {
		server.CloseClientConnections()
		server.Close()
		m.Close()
	})
	ts.Setenv("SERVER", server.URL)
}

// A fakeServer answers as llama-server does (kind "llama"), as one of 2024 ("old"), as a server with OpenAI's
// completions ("openai", "openai-text", which wants texts) or in some wrong way.
type fakeServer struct {
	kind   string
	model  *ggmlsteer.Model
	active []ggmlsteer.Active
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, message string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"type":"some_error"}}`, status, message)
	}
	openAI := strings.HasPrefix(f.kind, "openai")
	if r.URL.Path != map[bool]string{true: "/v1/completions", false: "/completion"}[openAI] {
		refuse(http.StatusNotFound, "File Not Found")
		return
	}
	var request struct {
		Prompt   json.RawMessage
		NProbs   int `json:"n_probs"`
		Logprobs int
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		refuse(http.StatusBadRequest, err.Error())
		return
	}
	switch f.kind {
	case "huge":
		io.WriteString(w, `{"completion_probabilities":[`)
		for {
			if _, err := io.WriteString(w, strings.Repeat(`{"id":1},`, 1000)); err != nil {
				return
			}
		}
	case "malformed":
		io.WriteString(w, `{"completion_probabilities":[{"top_logprobs":[{"id":"one"`)
		return
	case "html":
		io.WriteString(w, "<html>It works!</html>")
		return
	case "type":
		io.WriteString(w, `{"completion_probabilities":{"a":"b"}}`)
		return
	case "silent":
		io.WriteString(w, `{"content":" the"}`)
		return
	case "openai-silent":
		io.WriteString(w, `{"choices":[{"text":" the","logprobs":null}]}`)
		return
	case "slow":
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute):
		}
		return
	case "loading":
		refuse(http.StatusServiceUnavailable, "Loading model")
		return
	case "key":
		if r.Header.Get("Authorization") != "Bearer secret" {
			refuse(http.StatusUnauthorized, "Invalid API Key")
			return
		}
	case "positive":
		io.WriteString(w, `{"completion_probabilities":[{"top_logprobs":[{"id":1,"logprob":2}]}]}`)
		return
	case "sum":
		io.WriteString(w, `{"completion_probabilities":[{"top_logprobs":[{"id":1,"logprob":-0.1},{"id":2,"logprob":-0.1}]}]}`)
		return
	case "twice":
		io.WriteString(w, `{"completion_probabilities":[{"top_logprobs":[{"id":1,"logprob":-1},{"id":1,"logprob":-2}]}]}`)
		return
	case "vocabulary":
		io.WriteString(w, `{"completion_probabilities":[{"top_logprobs":[{"id":123456789,"logprob":-1}]}]}`)
		return
	case "negative":
		io.WriteString(w, `{"completion_probabilities":[{"top_logprobs":[{"id":-5,"token":"no such token anywhere","logprob":-1}]}]}`)
		return
	case "redirect":
		http.Redirect(w, r, "http://127.0.0.1:1/completion", http.StatusTemporaryRedirect)
		return
	}
	var tokens []ggmlsteer.Token
	if err := json.Unmarshal(request.Prompt, &tokens); err != nil || f.kind == "openai-text" {
		var text string
		if err := json.Unmarshal(request.Prompt, &text); err != nil {
			refuse(http.StatusBadRequest, "the prompt is not a text")
			return
		}
		if tokens, err = f.model.Tokenize(text, false); err != nil {
			refuse(http.StatusInternalServerError, err.Error())
			return
		}
	}
	if openAI && request.Logprobs > 5 {
		refuse(http.StatusBadRequest, "logprobs is at most 5")
		return
	}
	logs, order, err := f.next(tokens)
	if err != nil {
		refuse(http.StatusInternalServerError, err.Error())
		return
	}
	order = order[:max(request.NProbs, request.Logprobs)]
	var answer any
	switch {
	case openAI:
		top := map[string]float64{}
		for _, t := range order {
			top[f.model.Text([]ggmlsteer.Token{t}, true)] = logs[t]
		}
		answer = map[string]any{"choices": []any{map[string]any{"logprobs": map[string]any{"top_logprobs": []any{top}}}}}
	case f.kind == "old":
		var probs []any
		for _, t := range order {
			probs = append(probs, map[string]any{"tok_str": f.model.Text([]ggmlsteer.Token{t}, true), "prob": math.Exp(logs[t])})
		}
		answer = map[string]any{"completion_probabilities": []any{map[string]any{"content": "x", "probs": probs}}}
	default:
		var top []any
		for _, t := range order {
			top = append(top, map[string]any{"id": t, "token": "", "logprob": logs[t]})
		}
		answer = map[string]any{"completion_probabilities": []any{map[string]any{"top_logprobs": top}}}
	}
	json.NewEncoder(w).Encode(answer)
}

// next are the log-probabilities of all tokens, and the tokens from the likeliest on.
func (f *fakeServer) next(tokens []ggmlsteer.Token) ([]float64, []ggmlsteer.Token, error) {
	d, err := f.model.NewDecoder(ggmlsteer.DecoderOptions{Context: len(tokens)})
	if err != nil {
		return nil, nil, err
	}
	defer d.Close()
	if err := d.Steer(f.active...); err != nil {
		return nil, nil, err
	}
	rows, err := d.NextLogits(context.Background(), [][]ggmlsteer.Token{tokens})
	if err != nil {
		return nil, nil, err
	}
	logs := logSoftmax(rows[0])
	order := make([]ggmlsteer.Token, len(logs))
	for i := range order {
		order[i] = ggmlsteer.Token(i)
	}
	slices.SortFunc(order, func(a, b ggmlsteer.Token) int {
		switch {
		case logs[a] > logs[b]:
			return -1
		case logs[a] < logs[b]:
			return 1
		}
		return int(a - b)
	})
	return logs, order, nil
}

// within FILE PATH MIN MAX: the number there is in the range.
func within(ts *testscript.TestScript, neg bool, args []string) {
	value, _ := at(ts, args[0], args[1])
	x, isNumber := value.(float64)
	low, err := strconv.ParseFloat(args[2], 64)
	ts.Check(err)
	high, err := strconv.ParseFloat(args[3], 64)
	ts.Check(err)
	if !isNumber || !(x >= low && x <= high) {
		ts.Fatalf("%s %s is %v, not from %v to %v", args[0], args[1], value, low, high)
	}
}
