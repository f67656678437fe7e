// Command optimize finds a steering vector from Go and writes it to a file:
//
//	go run ./examples/optimize MODEL.gguf VECTOR.gguf
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: optimize MODEL.gguf VECTOR.gguf")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := find(ctx, os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func find(ctx context.Context, model, out string) error {
	m, err := ggmlsteer.Open(model, ggmlsteer.Options{})
	if err != nil {
		return err
	}
	defer m.Close()
	layers, err := optimize.ParseLayers("2")
	if err != nil {
		return err
	}
	steps := 20
	job := &optimize.Job{
		Options: optimize.DefaultOptions(),
		Layers:  layers,
		Examples: []optimize.Example{{
			Prompt: "When you open the program,",
			Src:    []string{" the main window shows the list of your files."},
			Dst:    []string{" la ventana principal muestra la lista de sus archivos."},
		}},
	}
	job.MaxIters = &steps
	result, err := optimize.Run(ctx, m, job, func(s optimize.Step) {
		fmt.Printf("step %2d: loss %.3f, norm %.2f\n", s.Iter, s.Loss, s.Layers[0].Norm)
	})
	if err != nil {
		return err
	}
	fmt.Printf("stopped: %s, after %d steps of %.2f s\n", result.Stop, result.Iters, result.SecondsPerStep)
	return loader.Write(out, result.Steering)
}
