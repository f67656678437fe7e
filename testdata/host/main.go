// Command host has two llama.cpps in one process, llsteer's and the one in the folder
// YZMA_LIB, and continues a prompt with each in turn:
//
//	host MODEL.gguf PROMPT ours,theirs,ours
//
// It prints a JSON list of the texts.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"strings"
	"sync"

	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/llsteer/llsteer/ggmlsteer"
)

const tokens = 12

func main() {
	var texts []string
	for name := range strings.SplitSeq(os.Args[3], ",") {
		text := map[string]func(path, prompt string) string{"ours": ours, "theirs": theirs}[name](os.Args[1], os.Args[2])
		texts = append(texts, text)
	}
	check(json.NewEncoder(os.Stdout).Encode(texts))
}

func ours(path, prompt string) string {
	m, err := ggmlsteer.Open(path, ggmlsteer.Options{})
	check(err)
	defer m.Close()
	d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: 64})
	check(err)
	defer d.Close()
	ids, err := m.Tokenize(prompt, false)
	check(err)
	all, err := d.Generate(context.Background(), [][]ggmlsteer.Token{ids}, ggmlsteer.GenerateOptions{Tokens: tokens}, nil)
	check(err)
	return all[0].Text
}

var load = sync.OnceFunc(func() {
	check(llama.Load(os.Getenv("YZMA_LIB")))
	llama.LogSet(llama.LogSilent())
	llama.Init()
})

func theirs(path, prompt string) string {
	load()
	params := llama.ModelDefaultParams()
	params.NGpuLayers = 0
	model, err := llama.ModelLoadFromFile(path, params)
	check(err)
	defer llama.ModelFree(model)
	ctx, err := llama.InitFromModel(model, llama.ContextDefaultParams())
	check(err)
	defer llama.Free(ctx)
	vocab := llama.ModelGetVocab(model)
	sampler := llama.SamplerChainInit(llama.SamplerChainDefaultParams())
	defer llama.SamplerFree(sampler)
	llama.SamplerChainAdd(sampler, llama.SamplerInitGreedy())
	batch := llama.BatchGetOne(llama.Tokenize(vocab, prompt, true, false))
	piece := make([]byte, 256)
	var text []byte
	for range tokens {
		_, err := llama.Decode(ctx, batch)
		check(err)
		token := llama.SamplerSample(sampler, ctx, -1)
		text = append(text, piece[:max(0, llama.TokenToPiece(vocab, token, piece, 0, false))]...)
		batch = llama.BatchGetOne([]llama.Token{token})
	}
	return string(text)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
