// Command chat talks with a model, one line a message, and steers it:
//
//	go run ./examples/chat MODEL.gguf VECTOR.gguf
//
// A line such as /0.5 sets the strength, also while the model is writing: the answer goes
// on with the new one.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: chat MODEL.gguf VECTOR.gguf")
	}
	m, err := ggmlsteer.Open(os.Args[1], ggmlsteer.Options{Decoding: true})
	check(err)
	defer m.Close()
	steering, err := loader.Read(os.Args[2])
	check(err)
	check(steering.CheckFits(m.Info().Arch, m.Info().Embd, m.Info().Layers))
	d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: min(2048, m.Info().TrainContext)})
	check(err)
	defer d.Close()

	var strength atomic.Value
	strength.Store(0.5)
	questions := make(chan string)
	go func() { // the decoder stays with the other goroutine
		defer close(questions)
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			if x, err := strconv.ParseFloat(strings.TrimPrefix(s.Text(), "/"), 64); err == nil && strings.HasPrefix(s.Text(), "/") {
				strength.Store(x)
			} else {
				questions <- s.Text()
			}
		}
	}()
	var messages []ggmlsteer.Message
	for question := range questions {
		messages = append(messages, ggmlsteer.Message{Role: ggmlsteer.RoleUser, Text: question})
		tokens, err := m.ChatMessages(messages)
		check(err)
		answer := ""
		// a few tokens at a time, each time under the strength of the moment
		for stop := ggmlsteer.StopLength; stop == ggmlsteer.StopLength && len(answer) < 1000; {
			check(d.Steer(ggmlsteer.Active{Steering: steering, Strength: strength.Load().(float64)}))
			all, err := d.Generate(context.Background(), [][]ggmlsteer.Token{tokens}, ggmlsteer.GenerateOptions{Tokens: 8},
				func(_ int, text string) { fmt.Print(text) })
			check(err)
			stop, answer, tokens = all[0].Stop, answer+all[0].Text, append(tokens, all[0].Tokens...)
		}
		fmt.Println()
		messages = append(messages, ggmlsteer.Message{Role: ggmlsteer.RoleAssistant, Text: answer})
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
