// Command unpatched times llsteer's decoder for bench/unpatched/run.py, as library/prompts.cpp times the unpatched library.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
)

func main() {
	model := flag.String("m", "", "GGUF model")
	threads := flag.Int("t", 2, "threads")
	flag.Parse()
	if err := run(*model, *threads); err != nil {
		fmt.Fprintln(os.Stderr, "unpatched:", err)
		os.Exit(1)
	}
}

func run(path string, threads int) error {
	m, err := ggmlsteer.Open(path, ggmlsteer.Options{Threads: threads})
	if err != nil {
		return err
	}
	defer m.Close()
	d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: 1024, Sequences: 1})
	if err != nil {
		return err
	}
	defer d.Close()
	next := ggmlsteer.Token(260)
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var n int
		var tokens []ggmlsteer.Token
		if _, err := fmt.Sscanf(in.Text(), "prompt %d", &n); err == nil {
			d.Clear()
			for i := range n {
				tokens = append(tokens, ggmlsteer.Token(260+i))
			}
		} else {
			tokens = append(tokens, next)
			next++
		}
		began := time.Now()
		if err := d.Slot(0).Append(tokens...); err != nil {
			return err
		}
		if err := d.Decode(context.Background()); err != nil {
			return err
		}
		fmt.Printf("%.6f\n", time.Since(began).Seconds())
	}
	return nil
}
