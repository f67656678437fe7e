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
	m, err := ggmlsteer.Open(os.Args[1], ggmlsteer.Options{})
	check(err)
	defer m.Close()
	steering, err := loader.Read(os.Args[2])
	check(err)
	check(steering.CheckFits(m.Info().Arch, m.Info().Embd, m.Info().Layers))
	d, err := m.NewDecoder(ggmlsteer.DecoderOptions{Context: min(2048, m.Info().TrainContext)})
	check(err)
	defer d.Close()
	slot := d.Slot(0)

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
	steer := func() { check(slot.Steer(ggmlsteer.Active{Steering: steering, Strength: strength.Load().(float64)})) }
	var messages []ggmlsteer.Message
	for question := range questions {
		messages = append(messages, ggmlsteer.Message{Role: ggmlsteer.RoleUser, Text: question})
		tokens, err := m.ChatMessages(messages)
		check(err)
		steer()
		_, err = slot.Set(tokens, len(tokens)) // computes only what is new, or steered otherwise
		check(err)
		var answer []ggmlsteer.Token
		for len(answer) < 300 {
			check(d.Decode(context.Background()))
			token, err := slot.Next(nil)
			check(err)
			if m.Ends(token) {
				break
			}
			fmt.Print(m.Text([]ggmlsteer.Token{token}, false))
			answer = append(answer, token)
			steer() // from this token on
			check(slot.Append(token))
		}
		fmt.Println()
		messages = append(messages, ggmlsteer.Message{Role: ggmlsteer.RoleAssistant, Text: m.Text(answer, false)})
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
