// An application that has the API's host built in: gets a voucher by the JDK's
// HttpClient, and prints its code and the status. It sends what it takes for an
// application's ID and secret. The port is that of the test, since a hosts file has
// none.
//
// Usage: KEY=<secret> java Client.java <port>

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.regex.Pattern;

class Client {
	public static void main(String[] args) throws Exception {
		HttpRequest request = HttpRequest.newBuilder(URI.create("https://api.voucherify.io:" + args[0] + "/v1/vouchers/BLCKFRDY"))
			.timeout(Duration.ofSeconds(15)).header("X-App-Id", "web-shop").header("X-App-Token", System.getenv("KEY")).build();
		var answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
		var code = Pattern.compile("\"code\":\"?(\\w+)").matcher(answer.body());
		System.out.println(answer.statusCode() + " " + (code.find() ? code.group(1) : answer.body()));
	}
}
