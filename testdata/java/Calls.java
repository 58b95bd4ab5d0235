// Calls an API at the given URL by the JDK's HttpClient with its default
// settings, as an application that holds no credential, and prints a line for
// each call: the body of the answer, the method and the status. Any other error
// ends it.
//
// Over plain http that client offers each server HTTP/2, by the headers Upgrade
// and HTTP2-Settings.
//
// Usage: java Calls.java <url>

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.List;

class Calls {
	public static void main(String[] args) throws Exception {
		HttpClient client = HttpClient.newHttpClient();
		HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(args[0])).timeout(Duration.ofSeconds(15));
		List<HttpRequest> calls = List.of(
			request.copy().GET().build(),
			request.copy().POST(HttpRequest.BodyPublishers.ofString("of the POST")).build(),
			request.copy().GET().build()); // perhaps over the connection of another
		for (HttpRequest call : calls) {
			var answer = client.send(call, BodyHandlers.ofString());
			System.out.println(answer.body() + " " + call.method() + " " + answer.statusCode());
		}
	}
}
