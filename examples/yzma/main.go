// Command yzma continues a prompt with yzma, which has no reader of control vectors:
// llsteer's loader reads the file (pure Go, no cgo), and yzma gives it to llama.cpp.
//
//	cd examples/yzma
//	YZMA_LIB=$(../../scripts/fetch-server.sh) go run . MODEL.gguf CVEC.gguf STRENGTH "Once upon a time"
//
// YZMA_LIB is a folder with libllama.so.
package main

import (
	"fmt"
	"log"
	"os"
	"strconv"

	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/llsteer/llsteer/loader"
)

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: yzma MODEL.gguf CVEC.gguf STRENGTH PROMPT")
	}
	strength, err := strconv.ParseFloat(os.Args[3], 64)
	check(err)
	vector, err := loader.Read(os.Args[2])
	check(err)
	check(vector.CheckControlVector())
	modelFile, err := loader.CheckModel(os.Args[1])
	check(err)
	check(vector.CheckFits(modelFile.Arch, modelFile.Embd, modelFile.Layers))

	check(llama.Load(os.Getenv("YZMA_LIB")))
	llama.LogSet(llama.LogSilent())
	llama.Init()
	defer llama.Close()
	params := llama.ModelDefaultParams()
	params.NGpuLayers = 0
	model, err := llama.ModelLoadFromFile(os.Args[1], params)
	check(err)
	defer llama.ModelFree(model)
	ctx, err := llama.InitFromModel(model, llama.ContextDefaultParams())
	check(err)
	defer llama.Free(ctx)

	// A row for each block from the first on, so that a shorter vector leaves nothing of an
	// earlier one: direction.N is row N-1.
	embd, blocks := vector.Embd, modelFile.Layers
	rows := make([]float32, embd*(blocks-1))
	for i, layer := range vector.Layers {
		if n := loader.DirectionOf(layer); n < blocks {
			for j, x := range vector.At(i).Vector {
				rows[(n-1)*embd+j] = float32(strength) * x
			}
		}
	}
	if status := llama.SetAdapterCvec(ctx, rows, int32(embd), 1, int32(blocks)); status != 0 {
		log.Fatalf("llama.cpp does not take the control vector: %d", status)
	}

	vocab := llama.ModelGetVocab(model)
	sampler := llama.SamplerChainInit(llama.SamplerChainDefaultParams())
	llama.SamplerChainAdd(sampler, llama.SamplerInitGreedy())
	batch := llama.BatchGetOne(llama.Tokenize(vocab, os.Args[4], true, false))
	piece := make([]byte, 256)
	for range 20 {
		_, err := llama.Decode(ctx, batch)
		check(err)
		token := llama.SamplerSample(sampler, ctx, -1)
		if llama.VocabIsEOG(vocab, token) {
			break
		}
		n := llama.TokenToPiece(vocab, token, piece, 0, false)
		os.Stdout.Write(piece[:max(n, 0)])
		batch = llama.BatchGetOne([]llama.Token{token})
	}
	fmt.Println()
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
